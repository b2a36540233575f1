//! What a probe or an operator may ask: `/live`, `/ready` and `/metrics`, on loopback.
//!
//! Counters are rounded up, so that no single client or exit bridge shows in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;

/// Numbers are rounded up to a multiple of this.
const STEP: u64 = 8;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A descriptor was accepted.
    Registered,
    /// An exit bridge withdrew.
    Withdrawn,
    /// A client was given exit bridges.
    HandedOut,
    /// A client could not be given any.
    HandedOutNone,
    /// A client reported an exit bridge.
    Reported,
}

/// Names of the events, in their order.
const EVENTS: [&str; 5] = ["registered", "withdrawn", "handed_out", "handed_out_none", "reported"];

/// Counters, shared by all tasks.
#[derive(Default)]
pub struct Metrics {
    ready: AtomicBool,
    events: [AtomicU64; EVENTS.len()],
    registered: AtomicU64,
    untested: AtomicU64,
    on_ring: AtomicU64,
}

impl Metrics {
    /// Clients can come from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, event: Event) {
        self.events[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Exit bridges that are registered, and how many of them have not passed a test.
    pub(crate) fn set_registered(&self, n: u64, untested: u64) {
        self.registered.store(n, Ordering::Relaxed);
        self.untested.store(untested, Ordering::Relaxed);
    }

    /// One came since they were counted.
    pub(crate) fn one_more_untested(&self) {
        self.untested.fetch_add(1, Ordering::Relaxed);
    }

    /// Exit bridges that have not passed a test: not fewer than there are.
    pub(crate) fn untested(&self) -> u64 {
        self.untested.load(Ordering::Relaxed)
    }

    /// Exit bridges that can be handed out.
    pub(crate) fn set_on_ring(&self, n: usize) {
        self.on_ring.store(n as u64, Ordering::Relaxed);
    }

    /// Exit bridges that were registered when they were last counted.
    pub(crate) fn registered(&self) -> u64 {
        self.registered.load(Ordering::Relaxed)
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let rounded = |n: &AtomicU64| n.load(Ordering::Relaxed).div_ceil(STEP) * STEP;
        let mut text = String::from("# TYPE hebtor_directory_requests_total counter\n");
        for (name, n) in EVENTS.iter().zip(&self.events) {
            text.push_str(&format!("hebtor_directory_requests_total{{what=\"{name}\"}} {}\n", rounded(n)));
        }
        text.push_str("# TYPE hebtor_directory_exit_bridges gauge\n");
        for (name, n) in [("registered", &self.registered), ("handed_out", &self.on_ring)] {
            text.push_str(&format!("hebtor_directory_exit_bridges{{which=\"{name}\"}} {}\n", rounded(n)));
        }
        let ready = u8::from(self.ready.load(Ordering::Relaxed));
        text.push_str(&format!("# TYPE hebtor_directory_ready gauge\nhebtor_directory_ready {ready}\n"));
        text
    }
}

/// The router of the status page.
pub fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(text))
        .with_state(metrics)
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, &'static str) {
    match metrics.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
    }
}

async fn text(State(metrics): State<Arc<Metrics>>) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_rounded_up() {
        let metrics = Metrics::default();
        metrics.count(Event::HandedOut);
        metrics.set_registered(9, 0);
        let text = metrics.text();
        assert!(text.contains("requests_total{what=\"handed_out\"} 8\n"), "{text}");
        assert!(text.contains("exit_bridges{which=\"registered\"} 16\n"), "{text}");
        assert!(text.contains("exit_bridges{which=\"handed_out\"} 0\n"), "{text}");
    }
}
