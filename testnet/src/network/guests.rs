//! Tors that use the network and are in no consensus: what exit bridges are compared with.

use std::fs;
use std::net::SocketAddr;

use super::{Plan, RelayInfo, Role, TestNet};
use crate::error::TestNetError;
use crate::slice::free_port;
use crate::torrc;

/// A relay that is in no consensus.
#[derive(Debug, Clone)]
pub struct UnlistedRelay {
    /// Where and who it is.
    pub relay: RelayInfo,
    /// Its public ntor key (tor-spec, "Relay keys"; what `secret_onion_key_ntor` ends with).
    pub ntor: [u8; 32],
}

impl TestNet {
    /// Starts a C tor exit that publishes no descriptor, behind a delayed link like every relay.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_unlisted_exit(&mut self, name: &str) -> Result<UnlistedRelay, TestNetError> {
        let address = self.slice.spare();
        let plan = Plan {
            nickname: name.to_owned(),
            role: Role::Exit,
            address,
            orport: free_port(address, 9001)?,
            listen_port: if self.latency.is_zero() { None } else { Some(free_port(address, 9101)?) },
            dirport: None,
            keys: None,
        };
        self.links.extend(plan.link(self.latency).await?);
        let text = |common: &_, data: &_| {
            torrc::relay(common, data, &plan.torrc(&[])) + "PublishServerDescriptor 0\n"
        };
        let data = self.add(name, text).await?;
        let relay = self.identity(&plan).await?;
        let path = data.join("keys/secret_onion_key_ntor");
        let bytes = fs::read(&path).map_err(TestNetError::file("read", &path))?;
        let ntor = bytes.last_chunk().ok_or(TestNetError::Malformed { path, problem: "it is too short" })?;
        Ok(UnlistedRelay { relay, ntor: *ntor })
    }

    /// Starts a C tor onion service whose `port` leads to `target`. Returns its onion address; its descriptor
    /// may take some seconds more until it is published.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_onion_service(
        &mut self,
        name: &str,
        port: u16,
        target: SocketAddr,
    ) -> Result<String, TestNetError> {
        let data = self.add(name, |common, data| torrc::onion_service(common, data, port, target)).await?;
        let path = data.join("service/hostname");
        let host = fs::read_to_string(&path).map_err(TestNetError::file("read", &path))?;
        Ok(host.trim().to_owned())
    }
}
