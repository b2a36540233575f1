//! An onion service of one's own.

use std::sync::Arc;

use arti_client::TorClient;
use data_encoding::HEXLOWER;
use eebt_proto::OnionReach;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sha2::{Digest as _, Sha256};
use tor_hscrypto::pk::{HsIdKey, HsIdKeypair};
use tor_hsservice::config::OnionServiceConfigBuilder;
use tor_hsservice::{HsNickname, RendRequest, RunningOnionService};

use crate::TorRuntime;

/// Introduction points: a client needs one of them, and each costs a circuit.
const INTRODUCTION_POINTS: u8 = 3;

/// A running onion service. It takes some seconds until clients find it.
pub struct OnionService {
    /// How clients find it.
    pub reach: OnionReach,
    /// Clients that want to meet it.
    pub requests: BoxStream<'static, RendRequest>,
    /// The service ends when this is dropped; rendezvous circuits that are open stay.
    pub running: Arc<RunningOnionService>,
}

/// The service can't be launched.
#[derive(Debug, thiserror::Error)]
#[error("cannot launch the onion service")]
pub struct ServiceError(#[source] Box<dyn std::error::Error + Send + Sync>);

fn failed(source: impl std::error::Error + Send + Sync + 'static) -> ServiceError {
    ServiceError(Box::new(source))
}

impl OnionService {
    /// Launches the service with the identity `key`.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn launch(tor: &TorClient<TorRuntime>, key: HsIdKeypair) -> Result<Self, ServiceError> {
        let reach = onion_reach(&key);
        // Arti keeps what it knows of a service under its nickname, the identity included. A name that
        // follows from the identity can't lead to another one; it is a hash, since Arti logs it.
        let name = HEXLOWER.encode(&Sha256::digest(reach.service)[..10]);
        let nickname: HsNickname = name.parse().map_err(failed)?;
        let config = || {
            let mut config = OnionServiceConfigBuilder::default();
            config.nickname(nickname.clone()).num_intro_points(INTRODUCTION_POINTS).build().map_err(failed)
        };
        let launched = match tor.launch_onion_service_with_hsid(config()?, key) {
            Ok(launched) => launched.map(|(service, requests)| (service, requests.boxed())),
            // Launched before, most likely: its identity is in Arti's store already.
            Err(_) => {
                let launched = tor.launch_onion_service(config()?).map_err(failed)?;
                launched.map(|(service, requests)| (service, requests.boxed()))
            }
        };
        let (running, requests) = launched.ok_or_else(|| failed(std::io::Error::other("it is disabled")))?;
        Ok(Self { reach, requests, running })
    }
}

/// How the onion service with the identity `key` is found.
pub fn onion_reach(key: &HsIdKeypair) -> OnionReach {
    let id = HsIdKey::from(key).id();
    let bytes: &[u8] = id.as_ref();
    OnionReach { service: std::array::from_fn(|i| bytes.get(i).copied().unwrap_or_default()) }
}
