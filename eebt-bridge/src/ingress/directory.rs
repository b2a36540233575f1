//! What a circuit exit bridge says to BEGIN_DIR: its own server descriptor, as any relay does, so that who has its
//! bridge line can tell C tor of it. It knows no other relay, and answers nothing else.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use eebt_proto::{Host, PortSet, Target};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;
use tor_error::ErrorReport as _;
use tor_proto::client::stream::DataStream;

use crate::BridgeKeys;
use crate::server_descriptor::server_descriptor;

/// Where relays have their own descriptor (dir-spec, "Client operation").
const PATH: &str = "/tor/server/authority";

/// After how long a descriptor is made anew: long before C tor would forget it.
const RENEW_AFTER: Duration = Duration::from_secs(12 * 3600);

/// The directory of one exit bridge, of which it is the only entry.
pub(crate) struct OwnDirectory {
    keys: Arc<BridgeKeys>,
    address: SocketAddr,
    target: Target,
    ports: PortSet,
    made: Mutex<Option<(SystemTime, String)>>,
}

impl OwnDirectory {
    /// None for an exit bridge that only IPv6 leads to: a server descriptor must have an IPv4 address.
    pub(crate) fn new(keys: Arc<BridgeKeys>, address: SocketAddr, ports: PortSet) -> Option<Self> {
        let target = Target { host: Host::Ip(address.ip()), port: address.port() };
        address.is_ipv4().then(|| Self { keys, address, target, ports, made: Mutex::default() })
    }

    /// Whom a stream to it is for.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Answers one stream.
    pub(crate) async fn serve(&self, stream: DataStream, limit: Duration) {
        let descriptor = self.descriptor(SystemTime::now()).ok_or(StatusCode::INTERNAL_SERVER_ERROR);
        let router = Router::new().route(PATH, get(|| std::future::ready(descriptor)));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.max_buf_size(16 * 1024).keep_alive(false);
        let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        // How it ended is the client's own business.
        let _ended = timeout(limit, serving).await;
    }

    /// The descriptor of now; signed when that is due, and not for each who asks.
    fn descriptor(&self, now: SystemTime) -> Option<String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = made.as_ref()
            && now.duration_since(*at).is_ok_and(|age| age < RENEW_AFTER)
        {
            return Some(text.clone());
        }
        let text = server_descriptor(&self.keys, self.address, &self.ports, now)
            .map_err(|error| tracing::warn!(error = %error.report(), "no server descriptor"))
            .ok()?;
        *made = Some((now, text.clone()));
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(address: &str) -> Option<OwnDirectory> {
        let tmp = tempfile::tempdir().unwrap();
        let keys = Arc::new(BridgeKeys::generate(&tmp.path().join("keys")).unwrap());
        OwnDirectory::new(keys, address.parse().unwrap(), PortSet::web())
    }

    #[test]
    fn a_descriptor_is_made_anew_before_c_tor_forgets_it() {
        let directory = directory("198.51.100.7:443").unwrap();
        let now = SystemTime::now();
        let first = directory.descriptor(now).unwrap();
        assert_eq!(directory.descriptor(now + RENEW_AFTER / 2).unwrap(), first);
        assert_ne!(directory.descriptor(now + RENEW_AFTER).unwrap(), first);
    }

    #[test]
    fn without_an_address_of_ipv4_there_is_none() {
        assert!(directory("[2001:db8::1]:443").is_none());
    }
}
