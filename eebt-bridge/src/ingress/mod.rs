//! How streams arrive, and the one way that all of them go from there to [`Egress`](crate::egress).

pub mod circuit;
mod net_params;
mod serve;

pub(crate) use serve::{Circuit, serve_stream};
