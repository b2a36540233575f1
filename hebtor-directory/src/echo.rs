//! The echo: a web page of our own that exit bridges are tested with. Whoever knows a test's one-time
//! path is shown some bytes, and the address that it came from is told to the tester: what the exit
//! bridge itself says is not asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Router};
use data_encoding::HEXLOWER;
use tokio::sync::oneshot;

/// Length of the page, in bytes: enough to tell the classes of throughput apart.
pub const PAGE_LEN: usize = 256 * 1024;

/// Tests that wait for their visitor, by one-time path.
#[derive(Clone, Default)]
pub struct Echo(Arc<Mutex<HashMap<String, oneshot::Sender<IpAddr>>>>);

/// A test that waits for its visitor.
pub struct Expected {
    /// The path to ask for.
    pub path: String,
    /// The visitor's address, once it came.
    pub visitor: oneshot::Receiver<IpAddr>,
    token: String,
    echo: Echo,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.echo.waiting().remove(&self.token);
    }
}

impl Echo {
    /// Expects one visitor, at a path that nobody can guess.
    pub fn expect(&self) -> Expected {
        let token = HEXLOWER.encode(&rand::random::<[u8; 16]>());
        let (sender, visitor) = oneshot::channel();
        self.waiting().insert(token.clone(), sender);
        Expected { path: format!("/{token}"), visitor, token, echo: self.clone() }
    }

    /// Serves the page.
    pub fn router(&self) -> Router {
        let page = Bytes::from(vec![b'.'; PAGE_LEN]);
        let visit = async move |State(echo): State<Echo>,
                                Extension(ConnectInfo(from)): Extension<ConnectInfo<SocketAddr>>,
                                Path(token): Path<String>| {
            // Once: a second visitor, or one who guesses, sees what any other path shows.
            let sender = echo.waiting().remove(&token).ok_or(StatusCode::NOT_FOUND)?;
            let _nobody_waits = sender.send(from.ip().to_canonical());
            Ok::<_, StatusCode>(page.clone())
        };
        Router::new().route("/{token}", get(visit)).with_state(self.clone())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<IpAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
