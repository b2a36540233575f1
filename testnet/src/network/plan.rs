//! What relays a network is to have: names, addresses and ports, before anything runs.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::TestNetBuilder;
use crate::delay::{DelayLink, delay_link};
use crate::error::TestNetError;
use crate::keys::AuthorityKeys;
use crate::slice::{Slice, free_port};
use crate::torrc::{self, Role};

/// A relay before it runs: what its torrc says, less the text.
pub(super) struct Plan {
    pub(super) nickname: String,
    pub(super) role: Role,
    pub(super) address: Ipv4Addr,
    pub(super) orport: u16,
    pub(super) listen_port: Option<u16>,
    pub(super) dirport: Option<u16>,
    pub(super) keys: Option<AuthorityKeys>,
}

impl Plan {
    pub(super) fn torrc<'a>(&'a self, consensus_params: &'a [String]) -> torrc::Relay<'a> {
        torrc::Relay {
            nickname: &self.nickname,
            role: self.role,
            address: self.address,
            orport: self.orport,
            listen_port: self.listen_port,
            dirport: self.dirport,
            consensus_params,
        }
    }

    /// The delayed link before this relay, if there is to be one.
    pub(super) async fn link(&self, one_way: Duration) -> Result<Option<DelayLink>, TestNetError> {
        let Some(port) = self.listen_port else { return Ok(None) };
        let listen = (self.address, self.orport).into();
        Ok(Some(delay_link(listen, (self.address, port).into(), one_way).await?))
    }

    pub(super) fn dir_authority(&self) -> Option<String> {
        let keys = self.keys.as_ref()?;
        Some(torrc::dir_authority(&self.torrc(&[]), self.dirport?, &keys.v3ident, &keys.rsa_identity))
    }
}

/// Gives each relay a name, an address and ports. Authorities come first.
pub(super) fn plan(
    builder: &TestNetBuilder,
    slice: &Slice,
    keys: Vec<AuthorityKeys>,
) -> Result<Vec<Plan>, TestNetError> {
    let mut keys = keys.into_iter();
    let mut plans = Vec::new();
    for (role, name, count) in [
        (Role::Authority, "auth", builder.authorities),
        (Role::Middle, "middle", builder.middles),
        (Role::Exit, "exit", builder.exits),
    ] {
        for index in 0..count {
            let address = slice.node(role, index);
            let is_authority = role == Role::Authority;
            plans.push(Plan {
                nickname: format!("{name}{}", index + 1),
                role,
                address,
                orport: free_port(address, 9001)?,
                listen_port: if builder.latency.is_zero() { None } else { Some(free_port(address, 9101)?) },
                dirport: if is_authority { Some(free_port(address, 9030)?) } else { None },
                keys: if is_authority { keys.next() } else { None },
            });
        }
    }
    Ok(plans)
}
