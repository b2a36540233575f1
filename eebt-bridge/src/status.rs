//! What a probe or `eebt` may ask: `/live`, `/ready` and `/metrics`, on loopback.
//!
//! Counters are few and of all clients together; they are rounded, so that none of them shows when
//! one client came or how much it fetched.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;
use eebt_proto::SignedDocument;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Counters are rounded up to a multiple of this.
const STREAMS_STEP: u64 = 16;

/// Bytes are rounded up to a multiple of this.
const BYTES_STEP: u64 = 1 << 24;

/// Where the exit bridge stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No consensus yet.
    Starting,
    /// Serves.
    Serving,
    /// Takes no new streams.
    Draining,
}

/// How a request for a stream ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// Connected.
    Served = 0,
    /// Against the policy.
    Refused = 1,
    /// Over a bound.
    OverLimit = 2,
    /// Name or connection failed.
    Failed = 3,
}

/// How far it is on its way into Tor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayIn {
    /// A rough part of the way, in percent.
    pub percent: u8,
    /// Why it does not get on, as far as Arti can tell.
    pub blocked: Option<String>,
}

/// Counters and phase, shared by all tasks.
pub struct Status {
    phase: watch::Sender<Phase>,
    way_in: watch::Sender<WayIn>,
    streams: [AtomicU64; 4],
    up: AtomicU64,
    down: AtomicU64,
    channels_refused: AtomicU64,
    directories: AtomicU64,
    clients: AtomicU64,
    clients_met: AtomicU64,
    attestations: watch::Sender<BTreeMap<usize, SignedDocument>>,
}

/// What was counted so far, unrounded: for the owner's own eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes to targets.
    pub up: u64,
    /// Bytes from targets.
    pub down: u64,
    /// Streams that were connected.
    pub served: u64,
    /// Streams that were refused, by policy or bound.
    pub refused: u64,
    /// Clients of the onion service that are there now, by circuits.
    pub clients: u64,
    /// All that were met.
    pub clients_met: u64,
    /// Exit-bridge directories that hand us out.
    pub directories: u64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
            way_in: watch::Sender::default(),
            streams: Default::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            channels_refused: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            clients: AtomicU64::new(0),
            clients_met: AtomicU64::new(0),
            attestations: watch::Sender::default(),
        }
    }
}

impl Status {
    /// Moves on to another phase.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The phase, and its changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn set_way_in(&self, way_in: WayIn) {
        self.way_in.send_if_modified(|before| std::mem::replace(before, way_in.clone()) != way_in);
    }

    /// How far it is on its way into Tor, and changes of that until it has arrived.
    pub fn way_in(&self) -> watch::Receiver<WayIn> {
        self.way_in.subscribe()
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.streams[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_up(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_down(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_refused_channel(&self) {
        self.channels_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many exit-bridge directories hand us out.
    pub(crate) fn set_directories(&self, n: u64) {
        self.directories.store(n, Ordering::Relaxed);
    }

    /// What a directory said last of when we served.
    pub(crate) fn set_attestation(&self, directory: usize, attestation: SignedDocument) {
        self.attestations.send_modify(|all| drop(all.insert(directory, attestation)));
    }

    /// What each directory, by its number, said last of when we served, and its changes: attestations that were
    /// verified. The last ones come while it drains.
    pub fn attestations(&self) -> watch::Receiver<BTreeMap<usize, SignedDocument>> {
        self.attestations.subscribe()
    }

    /// A client was met, and is there until the result is dropped.
    pub(crate) fn met_client(self: &Arc<Self>) -> Client {
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.clients_met.fetch_add(1, Ordering::Relaxed);
        Client(Arc::clone(self))
    }

    /// All that was counted.
    pub fn totals(&self) -> Totals {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let of = |outcome: Outcome| read(&self.streams[outcome as usize]);
        Totals {
            up: read(&self.up),
            down: read(&self.down),
            served: of(Outcome::Served),
            refused: of(Outcome::Refused) + of(Outcome::OverLimit),
            clients: read(&self.clients),
            clients_met: read(&self.clients_met),
            directories: read(&self.directories),
        }
    }

    /// All counters in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let rounded = |n: &AtomicU64, step: u64| n.load(Ordering::Relaxed).div_ceil(step) * step;
        let mut text = String::from("# TYPE eebt_bridge_streams_total counter\n");
        for (name, n) in ["served", "refused", "over_limit", "failed"].iter().zip(&self.streams) {
            let n = rounded(n, STREAMS_STEP);
            text.push_str(&format!("eebt_bridge_streams_total{{outcome=\"{name}\"}} {n}\n"));
        }
        text.push_str("# TYPE eebt_bridge_bytes_total counter\n");
        for (name, n) in [("up", &self.up), ("down", &self.down)] {
            let n = rounded(n, BYTES_STEP);
            text.push_str(&format!("eebt_bridge_bytes_total{{direction=\"{name}\"}} {n}\n"));
        }
        let n = rounded(&self.channels_refused, STREAMS_STEP);
        text.push_str(&format!(
            "# TYPE eebt_bridge_channels_refused_total counter\neebt_bridge_channels_refused_total {n}\n"
        ));
        let n = self.directories.load(Ordering::Relaxed);
        text.push_str(&format!("# TYPE eebt_bridge_directories gauge\neebt_bridge_directories {n}\n"));
        let ready = u8::from(*self.phase.borrow() == Phase::Serving);
        text.push_str(&format!("# TYPE eebt_bridge_ready gauge\neebt_bridge_ready {ready}\n"));
        text
    }
}

/// A client of the onion service that is there.
pub(crate) struct Client(Arc<Status>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers on `addr` until the returned task is dropped.
///
/// # Errors
/// The address can't be bound.
pub async fn serve(addr: SocketAddr, status: Arc<Status>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let listener = tokio::net::TcpListener::bind(addr).await?;
    let app = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(status);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the status endpoint ended");
        }
    }))
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, &'static str) {
    match *status.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: waiting for a consensus\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining: takes no new streams\n"),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], status.metrics())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_rounded_up() {
        let status = Status::default();
        assert!(status.metrics().contains("eebt_bridge_streams_total{outcome=\"served\"} 0\n"));
        status.count(Outcome::Served);
        status.add_down(1);
        let text = status.metrics();
        assert!(text.contains("eebt_bridge_streams_total{outcome=\"served\"} 16\n"), "{text}");
        assert!(text.contains("eebt_bridge_bytes_total{direction=\"down\"} 16777216\n"), "{text}");
        assert!(text.contains("eebt_bridge_ready 0"));
    }
}
