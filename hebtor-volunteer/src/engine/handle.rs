//! The app's side of it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use eebt_bridge::status::{Totals, WayIn};
use eebt_proto::{Attestation, SignedDocument};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Event, Order, Rates, STOPPED, Start, Tried};
use crate::machine;

/// How much longer than the drain the good-byes to directories may take.
const GOOD_BYES: Duration = Duration::from_secs(15);

/// Lines that it may be ahead of us.
const AHEAD: usize = 64;

/// A running exit bridge.
pub struct Engine {
    child: Child,
    stdin: Option<ChildStdin>,
    events: mpsc::Receiver<Event>,
    with: Start,
    serving: bool,
    /// When it is ended, if it has not by then.
    ends: Option<Instant>,
    way_in: WayIn,
    totals: Totals,
    failed: Option<String>,
    home: VecDeque<Vec<Tried>>,
    attestations: Vec<SignedDocument>,
    address: Option<IpAddr>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("the exit bridge can't be started")]
pub struct EngineError(#[source] std::io::Error);

impl Engine {
    /// Starts it.
    ///
    /// # Errors
    /// [`EngineError`].
    pub(crate) async fn start(with: Start) -> Result<Self, EngineError> {
        let mut child =
            machine::worker("engine").and_then(|mut worker| worker.spawn()).map_err(EngineError)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(EngineError(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (sender, events) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(event) = serde_json::from_str(&line)
                    && sender.send(event).await.is_err()
                {
                    return;
                }
            }
        });
        let mut engine = Self {
            child,
            stdin: Some(stdin),
            events,
            with: with.clone(),
            serving: false,
            ends: None,
            way_in: WayIn::default(),
            totals: Totals::default(),
            failed: None,
            home: VecDeque::new(),
            attestations: Vec::new(),
            address: None,
        };
        engine.order(&Order::Start(Box::new(with))).await;
        Ok(engine)
    }

    async fn order(&mut self, order: &Order) {
        let (Some(stdin), Ok(mut text)) = (&mut self.stdin, serde_json::to_string(order)) else { return };
        text.push('\n');
        // One that does not listen has ended, which `is_over` sees.
        let _ = stdin.write_all(text.as_bytes()).await;
    }

    /// Is it the same as one that would be started with this? Else it has to be started anew. Rates can be changed.
    pub(crate) async fn adapt(&mut self, with: &Start) -> bool {
        // An address that is learnt while it runs counts from its next start on.
        let same = Start { rates: with.rates, own_address: with.own_address, ..self.with.clone() } == *with;
        if same {
            self.set_rates(with.rates).await;
        }
        same
    }

    /// From now on as fast as this.
    pub(crate) async fn set_rates(&mut self, rates: Rates) {
        if self.with.rates != rates {
            self.with.rates = rates;
            self.order(&Order::Rates(rates)).await;
        }
    }

    /// What is new: takes in what it told, and says what was carried since the last time.
    pub fn news(&mut self) -> Totals {
        let before = self.totals;
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::WayIn(way_in) => self.way_in = way_in,
                Event::Serving => self.serving = true,
                Event::Totals(totals) => self.totals = totals,
                Event::Home(tried) => self.home.push_back(tried),
                Event::Attested(last) => {
                    // The last one to come has the address that it has now.
                    let seen = last.iter().filter_map(|signed| Attestation::verify(signed).ok());
                    self.address =
                        seen.max_by_key(|seen| seen.until).map(|seen| seen.egress).or(self.address);
                    self.attestations = last;
                }
                Event::Failed { error } => self.failed = Some(error),
            }
        }
        let (now, new) = (self.totals, |now: u64, before: u64| now.saturating_sub(before));
        Totals {
            up: new(now.up, before.up),
            down: new(now.down, before.down),
            served: new(now.served, before.served),
            refused: new(now.refused, before.refused),
            clients_met: new(now.clients_met, before.clients_met),
            ..now
        }
    }

    /// How far it is on its way into Tor.
    pub fn way_in(&self) -> &WayIn {
        &self.way_in
    }

    /// Since it was started.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Does it serve?
    pub fn is_serving(&self) -> bool {
        self.serving && self.ends.is_none()
    }

    /// Was it told to end?
    pub fn is_draining(&self) -> bool {
        self.ends.is_some()
    }

    /// Has it ended, by itself or because it was told to? Then with what error.
    pub fn is_over(&mut self) -> Option<Option<String>> {
        match self.child.try_wait() {
            Ok(None) => None,
            // Its last words are still on their way.
            Ok(Some(_)) if !(self.events.is_closed() && self.events.is_empty()) => None,
            Ok(Some(status)) if status.success() || self.ends.is_some() => Some(None),
            Ok(Some(status)) => {
                Some(Some(self.failed.take().unwrap_or_else(|| format!("it ended: {status}"))))
            }
            Err(error) => Some(Some(error.to_string())),
        }
    }

    /// What directories signed last of when it served.
    pub fn attestations(&self) -> &[SignedDocument] {
        &self.attestations
    }

    /// The address that sites see, as far as a directory said it.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Did it ever serve? It may be draining now.
    pub fn has_served(&self) -> bool {
        self.serving
    }

    /// Asks it to try to reach this home.
    pub async fn try_home(&mut self) {
        self.order(&Order::TryHome).await;
    }

    /// What came of it.
    pub fn home(&mut self) -> Option<Vec<Tried>> {
        self.home.pop_front()
    }

    /// Has it take nothing new, and end when what is open has ended, after this time at the latest.
    pub async fn drain(&mut self, limit: Duration) {
        if self.ends.is_none() {
            self.ends = Some(Instant::now() + limit + GOOD_BYES);
            self.order(&Order::Drain).await;
        }
    }

    /// Ends it at once.
    pub async fn kill(&mut self) {
        self.ends = Some(Instant::now());
        // It ends by itself, too, when its input does.
        self.stdin = None;
        let _ = self.child.kill().await;
    }

    /// Holds it still when what is open had its time, and ends it when the good-byes had theirs.
    pub(crate) async fn keep_time(&mut self) {
        if self.ends.is_some_and(|ends| Instant::now() + GOOD_BYES >= ends) {
            self.set_rates(STOPPED).await;
        }
        if self.ends.is_some_and(|ends| Instant::now() >= ends) {
            self.kill().await;
        }
    }
}
