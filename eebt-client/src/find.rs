//! Finds exit bridges in exit-bridge directories, and replaces those that die.
//!
//! A directory knows us by a ticket, which is made once (a proof of work of some seconds) and kept in the
//! state folder, and by nothing else: each directory has a circuit of its own. What a directory says is
//! believed only so far: its exit bridges are reached by paths with vanguards, and used as any stranger's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eebt_proto::directory::{Ask, EXIT_BRIDGES, ErrorBody, HandOut, REPORTS, Report, TICKET_TERMS, Wishes};
use eebt_proto::limits::MAX_HANDED_OUT;
use eebt_proto::{BridgeLine, OnionReach, Ticket, TicketTerms};
use eebt_tor::{HttpError, OnionConnector, OnionHttp, Reply};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::bridges::{Health, Now, Source};
use crate::connect::Connector;

/// Pauses after a failure: the first one, doubled with each in a row, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Pauses between two questions, whatever the directory says. It allows one a minute, and some at once.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(24 * 3600);

/// The pause before asking again when no exit bridge works: the directory needs time to see that, too. A
/// ticket may ask some times at once, and then once a minute.
fn dry_pause(times: u32) -> Duration {
    Duration::from_secs(if times <= 3 { 10 } else { 60 }).mul_f64(rand::random_range(0.7..1.0))
}

/// After so many answers that are no use nobody waits for a directory any more.
const GIVE_UP: u32 = 4;

/// An exit bridge is reported once in this time.
const REPORT_EVERY: Duration = Duration::from_secs(600);

/// Tickets by the onion address of their directory, as they are kept.
type Tickets = HashMap<String, Kept>;

/// A ticket and what it was made for.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    terms: TicketTerms,
    ticket: Ticket,
}

/// Why a directory gave nothing.
#[derive(Debug, thiserror::Error)]
enum FindError {
    /// It could not be asked.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It does not take the ticket: another one is needed.
    #[error("the ticket is not taken")]
    Ticket,
    /// It asks for too much, or for a ticket that is good elsewhere.
    #[error("its terms for a ticket are not acceptable")]
    Terms,
    /// It said no.
    #[error("refused (HTTP status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
    },
}

/// Asks directories for exit bridges.
pub struct Finder {
    connector: Arc<Connector>,
    onions: Arc<OnionConnector>,
    wishes: Wishes,
    tickets: TicketFile,
    /// How many directories are being asked while somebody may wait for the answer.
    asking: watch::Sender<usize>,
}

impl Finder {
    /// Puts what it finds into `connector`. Tickets are kept in `state_dir`.
    pub fn new(
        connector: Arc<Connector>,
        onions: Arc<OnionConnector>,
        wishes: Wishes,
        state_dir: &Path,
        asking: watch::Sender<usize>,
    ) -> Self {
        let tickets =
            TicketFile { path: state_dir.join("tickets.json"), lock: tokio::sync::Mutex::default() };
        Self { connector, onions, wishes, tickets, asking }
    }

    /// Keeps asking all `directories`. Never returns.
    pub async fn run(self, directories: &[OnionReach]) {
        // What each of them gave, for the list is one.
        let given = tokio::sync::Mutex::new(vec![Vec::new(); directories.len()]);
        let this = &self;
        join_all(directories.iter().enumerate().map(|(i, directory)| {
            let given = &given;
            let take = async move |lines: Vec<BridgeLine>| {
                let mut given = given.lock().await;
                if let Some(place) = given.get_mut(i) {
                    *place = lines;
                }
                let all: Vec<BridgeLine> = given.iter().flatten().cloned().collect();
                this.connector.replace_bridges(Source::Found, all);
            };
            // A number instead of an address: the log shall not say whom we ask.
            this.follow(directory.clone(), i + 1, take)
        }))
        .await;
        std::future::pending().await
    }

    async fn follow(&self, directory: OnionReach, number: usize, take: impl AsyncFn(Vec<BridgeLine>)) {
        let http = OnionHttp::new(Arc::clone(&self.onions), directory);
        let mut dead = self.connector.failures();
        let mut failures = 0u32;
        // Answers with nothing in them are no failures, and no help.
        let mut in_vain = 0u32;
        // The first exit bridge, or the first after all had died, is waited for.
        let mut awaited = true;
        let mut lines: Vec<BridgeLine> = Vec::new();
        let mut reported: HashMap<[u8; 32], tokio::time::Instant> = HashMap::new();
        loop {
            let pause = match self.ask(&http).await {
                Ok(found) => {
                    failures = 0;
                    let countries: Vec<_> = found
                        .exit_bridges
                        .iter()
                        .map(|f| (*f.bridge_line.reach.identity(), f.country))
                        .collect();
                    let mut given: Vec<BridgeLine> =
                        found.exit_bridges.into_iter().map(|found| found.bridge_line).collect();
                    given.truncate(MAX_HANDED_OUT);
                    tracing::info!(directory = number, exit_bridges = given.len(), "asked");
                    let has_none = given.is_empty();
                    lines = if has_none { self.still_good(&lines) } else { given };
                    if has_none && !lines.is_empty() {
                        tracing::info!(directory = number, kept = lines.len(), "those that work are kept");
                    }
                    take(lines.clone()).await;
                    for (identity, country) in &countries {
                        self.connector.bridges().note_country(identity, *country);
                    }
                    let lease = found.lease_until.duration_since(SystemTime::now()).unwrap_or_default();
                    let lease = lease.clamp(*LEASES.start(), *LEASES.end());
                    in_vain = if lines.is_empty() { in_vain + 1 } else { 0 };
                    if lines.is_empty() {
                        dry_pause(in_vain)
                    } else if has_none {
                        LEASES.start().mul_f64(rand::random_range(1.0..1.5))
                    } else {
                        lease.mul_f64(rand::random_range(0.9..1.0))
                    }
                }
                Err(error) => {
                    tracing::warn!(directory = number, %error, "a directory gave nothing");
                    failures += 1;
                    in_vain += 1;
                    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
                    pause.mul_f64(rand::random_range(0.5..1.0))
                }
            };
            if awaited && (in_vain == 0 || in_vain >= GIVE_UP) {
                awaited = false;
                self.asking.send_modify(|n| *n -= 1);
            }
            let until = tokio::time::Instant::now() + pause;
            // Until the lease is over; or until one of those that it gave dies, which it is told, and none
            // is left that works.
            while let Ok(dead) = tokio::time::timeout_at(until, dead.recv()).await {
                // Some may have been missed: then no one of them is reported.
                let Ok(identity) = dead.map(|id| *id.identity()) else { continue };
                if !lines.iter().any(|line| line.reach.identity() == &identity) {
                    continue;
                }
                let last = reported.get(&identity);
                if last.is_none_or(|last| last.elapsed() > REPORT_EVERY) {
                    reported.insert(identity, tokio::time::Instant::now());
                    self.report(&http, identity, number).await;
                }
                if !self.connector.bridges().any_works(Now::read()) {
                    if !awaited {
                        awaited = true;
                        self.asking.send_modify(|n| *n += 1);
                    }
                    in_vain += 1;
                    tokio::time::sleep(dry_pause(in_vain)).await;
                    break;
                }
            }
        }
    }

    /// See [`still_good`].
    fn still_good(&self, lines: &[BridgeLine]) -> Vec<BridgeLine> {
        let now = Now::read();
        let shown = self.connector.bridges().shown(now);
        let works = |identity: &[u8; 32]| {
            let mut of_this = shown.iter().filter(|shown| shown.id.identity() == identity);
            of_this.any(|shown| matches!(shown.health, Health::Works { .. } | Health::Untried))
        };
        still_good(lines, works, now.wall)
    }

    /// One question. A ticket that is not taken any more is forgotten, and the next question makes a new
    /// one; the pauses between questions see to it that a directory can't have us make one after the
    /// other.
    async fn ask(&self, http: &OnionHttp) -> Result<HandOut, FindError> {
        let answer = self.ask_with(http, self.ticket(http).await?).await;
        if matches!(answer, Err(FindError::Ticket)) {
            self.tickets.forget(http.service()).await;
        }
        answer
    }

    async fn ask_with(&self, http: &OnionHttp, ticket: Ticket) -> Result<HandOut, FindError> {
        let reply = http.post(EXIT_BRIDGES, &Ask { ticket, wishes: self.wishes.clone() }).await?;
        check(&reply)?;
        Ok(reply.json()?)
    }

    async fn report(&self, http: &OnionHttp, identity: [u8; 32], number: usize) {
        let Some(kept) = self.tickets.get(http.service()).await else { return };
        let reply = http.post(REPORTS, &Report { ticket: kept.ticket, identity }).await;
        match reply.map_err(FindError::from).and_then(|reply| check(&reply)) {
            Ok(()) => tracing::debug!(directory = number, "an exit bridge was reported"),
            Err(error) => tracing::debug!(directory = number, %error, "a report was lost"),
        }
    }

    /// The ticket for a directory, made where there is none.
    async fn ticket(&self, http: &OnionHttp) -> Result<Ticket, FindError> {
        let today = today();
        if let Some(kept) = self.tickets.get(http.service()).await
            && kept.ticket.is_current(kept.terms.days, today + 1)
        {
            return Ok(kept.ticket);
        }
        let reply = http.get(TICKET_TERMS).await?;
        check(&reply)?;
        let terms: TicketTerms = reply.json()?;
        // A ticket for another audience would be good there, in this directory's hands.
        if terms.audience != http.service().service || terms.check().is_err() {
            return Err(FindError::Terms);
        }
        tracing::info!("making a ticket; this takes some seconds, once in {} days", terms.days);
        // Given up when nobody waits for it any more, so that the program can end.
        let wanted = Arc::new(());
        let asking = Arc::downgrade(&wanted);
        let proof = {
            let terms = terms.clone();
            tokio::task::spawn_blocking(move || {
                Ticket::make(&terms, rand::random(), || asking.strong_count() > 0)
            })
        };
        let ticket = proof.await.ok().and_then(Result::ok).flatten().ok_or(FindError::Terms)?;
        drop(wanted);
        self.tickets.put(http.service(), Kept { terms, ticket: ticket.clone() }).await;
        Ok(ticket)
    }
}

/// What stays of what a directory gave, after it answered that it has none: those that have not ended, as long as one of
/// them works. A directory whose own tests fail, or that has just begun, knows less than we do.
fn still_good(lines: &[BridgeLine], works: impl Fn(&[u8; 32]) -> bool, now: SystemTime) -> Vec<BridgeLine> {
    let alive = lines.iter().filter(|line| !line.is_expired(now)).cloned().collect::<Vec<_>>();
    if alive.iter().any(|line| works(line.reach.identity())) { alive } else { Vec::new() }
}

fn today() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds / 86_400).unwrap_or(u32::MAX)
}

fn check(reply: &Reply) -> Result<(), FindError> {
    if reply.status.is_success() {
        return Ok(());
    }
    let code = reply.json::<ErrorBody>().map(|body| body.error.code).unwrap_or_default();
    match code.as_str() {
        "ticket_expired" | "ticket_bad" | "too_many_wishes" => Err(FindError::Ticket),
        _ => Err(FindError::Refused { status: reply.status.as_u16() }),
    }
}

/// The tickets on disk, for their owner only. Losing them costs a proof of work, no more.
struct TicketFile {
    path: PathBuf,
    lock: tokio::sync::Mutex<()>,
}

impl TicketFile {
    fn read(&self) -> Tickets {
        let text = std::fs::read(&self.path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write(&self, tickets: &Tickets) -> std::io::Result<()> {
        eebt_page::private_file::write(&self.path, &serde_json::to_vec(tickets)?)
    }

    async fn get(&self, directory: &OnionReach) -> Option<Kept> {
        let _lock = self.lock.lock().await;
        self.read().remove(&directory.to_string())
    }

    async fn put(&self, directory: &OnionReach, kept: Kept) {
        self.change(|tickets| tickets.insert(directory.to_string(), kept)).await;
    }

    async fn forget(&self, directory: &OnionReach) {
        self.change(|tickets| tickets.remove(&directory.to_string())).await;
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Tickets) -> T) {
        let _lock = self.lock.lock().await;
        let mut tickets = self.read();
        change(&mut tickets);
        if let Err(error) = self.write(&tickets) {
            tracing::warn!(%error, "tickets cannot be kept: each start makes new ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eebt_proto::ticket::TicketKind;
    use eebt_proto::{PortSet, Reach};

    #[test]
    fn an_empty_answer_takes_nothing_away_that_works() {
        let now = SystemTime::now();
        let minute = Duration::from_secs(60);
        let line = |n, expires| BridgeLine {
            reach: Reach::Onion(OnionReach { service: [n; 32] }),
            ports: PortSet::web(),
            expires,
        };
        let (one, two) = (line(1, None), line(2, Some(now + minute)));
        let both = [one.clone(), two.clone()];
        assert_eq!(still_good(&both, |_| true, now), both);
        assert_eq!(still_good(&both, |id| id[0] == 2, now), both, "the other one may work again");
        assert_eq!(still_good(&both, |_| false, now), []);
        assert_eq!(still_good(&both, |_| true, now + minute), [one], "one has ended");
        assert_eq!(still_good(&both, |id| id[0] == 2, now + minute), [], "the one that worked has");
        assert_eq!(still_good(&[], |_| true, now), []);
    }

    #[tokio::test]
    async fn tickets_are_kept_for_their_owner_only() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("state/tickets.json");
        let file = || TicketFile { path: path.clone(), lock: tokio::sync::Mutex::default() };
        let (one, other) = (OnionReach { service: [1; 32] }, OnionReach { service: [2; 32] });
        let kept = Kept {
            terms: TicketTerms {
                audience: [1; 32],
                day: 1,
                seed: [0; 16],
                memory_kib: 64,
                passes: 1,
                bits: 1,
                days: 30,
            },
            ticket: Ticket { kind: TicketKind::Argon2id, key: [3; 32], day: 1, nonce: 4 },
        };
        assert!(file().get(&one).await.is_none());
        file().put(&one, kept.clone()).await;
        file().put(&other, kept.clone()).await;
        assert!(file().get(&one).await.unwrap().ticket == kept.ticket);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        }
        file().forget(&one).await;
        assert!(file().get(&one).await.is_none() && file().get(&other).await.is_some());
        std::fs::write(&path, "not json").unwrap();
        assert!(file().get(&other).await.is_none(), "a damaged file is as none");
    }
}
