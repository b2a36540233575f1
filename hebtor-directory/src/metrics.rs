//! What a probe or an operator may ask: `/live`, `/ready` and `/metrics`, on loopback.
//!
//! Numbers are rounded down, so that no single client or exit bridge shows in them: what happened fewer times than
//! [`STEP`] is as if it had not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::get;

use crate::store::Counts;

/// Numbers are rounded down to a multiple of this.
const STEP: u64 = 8;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A descriptor was accepted.
    Registered,
    /// An exit bridge withdrew.
    Withdrawn,
    /// An exit bridge was told that it was seen to serve.
    Attested,
    /// A client was given exit bridges.
    HandedOut,
    /// A client could not be given any.
    HandedOutNone,
    /// A client reported an exit bridge.
    Reported,
}

/// Names of the events, in their order.
const EVENTS: [&str; 6] =
    ["registered", "withdrawn", "attested", "handed_out", "handed_out_none", "reported"];

/// Counters, shared by all tasks.
#[derive(Default)]
pub struct Metrics {
    ready: AtomicBool,
    events: [AtomicU64; EVENTS.len()],
    kept: AtomicU64,
    registered: AtomicU64,
    untested: AtomicU64,
    overdue: AtomicU64,
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

    /// How many exit bridges there are, as the store counted them.
    pub fn set_counts(&self, counts: Counts) {
        self.kept.store(counts.kept, Ordering::Relaxed);
        self.registered.store(counts.registered, Ordering::Relaxed);
        self.untested.store(counts.untested, Ordering::Relaxed);
        self.overdue.store(counts.overdue, Ordering::Relaxed);
    }

    /// A new one came since they were counted.
    pub(crate) fn one_more(&self) {
        for count in [&self.kept, &self.registered, &self.untested] {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Exit bridges of which something is kept: here not fewer than there are.
    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Exit bridges that have not passed a test: new ones are counted as they come.
    pub(crate) fn untested(&self) -> u64 {
        self.untested.load(Ordering::Relaxed)
    }

    /// Exit bridges that can be handed out.
    pub(crate) fn set_on_ring(&self, n: usize) {
        self.on_ring.store(n as u64, Ordering::Relaxed);
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let rounded = |n: &AtomicU64| n.load(Ordering::Relaxed) / STEP * STEP;
        let mut text = String::from("# TYPE hebtor_directory_requests_total counter\n");
        for (name, n) in EVENTS.iter().zip(&self.events) {
            text.push_str(&format!("hebtor_directory_requests_total{{what=\"{name}\"}} {}\n", rounded(n)));
        }
        text.push_str("# TYPE hebtor_directory_exit_bridges gauge\n");
        for (name, n) in [("registered", &self.registered), ("handed_out", &self.on_ring)] {
            text.push_str(&format!("hebtor_directory_exit_bridges{{which=\"{name}\"}} {}\n", rounded(n)));
        }
        text.push_str("# TYPE hebtor_directory_tests_overdue gauge\n");
        text.push_str(&format!("hebtor_directory_tests_overdue {}\n", rounded(&self.overdue)));
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
    fn nobody_shows_in_the_numbers() {
        let metrics = Metrics::default();
        let nothing = metrics.text();
        metrics.count(Event::HandedOut);
        metrics.count(Event::Reported);
        metrics.set_counts(Counts { kept: 1, registered: 1, untested: 1, overdue: 1 });
        metrics.set_on_ring(1);
        assert_eq!(metrics.text(), nothing, "the first one would be seen to come");
        (1..STEP).for_each(|_| metrics.count(Event::HandedOut));
        metrics.set_counts(Counts { kept: 30, registered: 17, untested: 3, overdue: 8 });
        let text = metrics.text();
        assert!(text.contains("requests_total{what=\"handed_out\"} 8\n"), "{text}");
        assert!(text.contains("exit_bridges{which=\"registered\"} 16\n"), "{text}");
        assert!(text.contains("exit_bridges{which=\"handed_out\"} 0\n"), "{text}");
        assert!(text.contains("tests_overdue 8\n"), "{text}");
    }
}
