//! How streams arrive, and the one way that all of them go from there to [`Egress`](crate::egress).

pub mod circuit;
mod directory;
mod net_params;
pub mod onion;
mod serve;

use serve::{Incoming, serve_circuit};

/// Why an ingress can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// Keys and certificates.
    #[error(transparent)]
    Keys(#[from] crate::keys::KeysError),
    /// Something in Arti; the source says what.
    #[error("cannot set up the {0}")]
    Setup(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
}
