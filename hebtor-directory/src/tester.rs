//! The proof: before an exit bridge is handed out, and then at random times, we connect through it to
//! our own echo and learn whether it lives, which address it leaves from, and how fast it is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eebt_proto::directory::{Speed, Standing};
use eebt_proto::special_use::special_use;
use eebt_proto::{Country, causes};
use eebt_tor::{CircuitError, PathKind, Paths};
use ipnet::IpNet;
use rand::RngExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tor_error::ErrorReport as _;
use tor_geoip::GeoipDb;
use tor_linkspec::HasAddrs as _;
use tor_netdir::{NetDirProvider, Timeliness};

use crate::config::Tests;
use crate::echo::{Echo, PAGE_LEN};
use crate::ring::Identity;
use crate::serve::neighbourhood;
use crate::store::{Noted, Record, Store, StoreError, Test};

/// How often the store is asked who is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How soon a test that failed is made again, before the exit bridge is taken off the ring.
const SECOND_LOOK: Duration = Duration::from_secs(10);

/// Longest pause between two tests of an exit bridge that fails them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);

/// When so many exit bridges that were handed out fail in this time, and none passes, the fault is looked for here.
const ALL_AT_ONCE: usize = 8;
const LATELY: Duration = Duration::from_secs(60);

/// What the tester works with.
pub struct Tester {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Circuits.
    pub paths: Paths,
    /// The relays of Tor, whose addresses are no use as egress.
    pub netdir: Arc<dyn NetDirProvider>,
    /// Our echo, and where it is.
    pub echo: Echo,
    /// The address that exit bridges are asked to connect to.
    pub echo_address: SocketAddr,
    /// How often, how long, how many at once.
    pub config: Tests,
    /// Where addresses are.
    pub geoip: Arc<GeoipDb>,
    /// How tests went.
    pub lately: Mutex<Lately>,
}

/// How the tests of the last minute went. When all of them fail it is not the exit bridges that fail: the echo can't be
/// reached, this machine is off the network, or somebody sees to it.
#[derive(Default)]
pub struct Lately {
    passed: Option<Instant>,
    failed: HashMap<Identity, Instant>,
    warned: bool,
}

impl Lately {
    fn passed(&mut self, now: Instant) {
        self.passed = Some(now);
    }

    /// One that was handed out failed.
    fn failed(&mut self, identity: Identity, now: Instant) {
        self.failed.retain(|_, at| now - *at < LATELY);
        self.failed.insert(identity, now);
    }

    fn is_us(&mut self, now: Instant) -> bool {
        let failed = self.failed.values().filter(|at| now - **at < LATELY).count();
        let passed = self.passed.is_some_and(|at| now - at < LATELY);
        let us = failed >= ALL_AT_ONCE && !passed;
        if us && !self.warned {
            tracing::warn!(
                "all tests of exit bridges fail: can the echo be reached from outside? They are handed out until \
                 their last test is too old"
            );
        }
        self.warned = us;
        us
    }
}

/// What a test that came through found out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    egress: IpAddr,
    latency: Duration,
    bytes_per_second: f64,
}

/// How a test failed. Carries no address.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Not the exit bridge's fault.
    #[error("no way into the Tor network: {0}")]
    Tor(String),
    /// The exit bridge's.
    #[error("{0}")]
    ExitBridge(String),
}

impl From<CircuitError> for Failed {
    fn from(error: CircuitError) -> Self {
        match error {
            CircuitError::Tor(error) => Self::Tor(error),
            CircuitError::ExitBridge(error) => Self::ExitBridge(error),
        }
    }
}

impl Tester {
    /// Tests whoever is due. Never returns.
    pub async fn run(self) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(this.config.at_once as usize));
        loop {
            let free = u32::try_from(places.available_permits()).unwrap_or(u32::MAX);
            let now = SystemTime::now();
            // Whoever claims one and dies leaves it to others after a while.
            let claimed = match free {
                0 => Ok(Vec::new()),
                _ => this.store.claim_due(free, now, now + this.config.timeout * 3).await,
            };
            let claimed = claimed.unwrap_or_else(|error| {
                tracing::warn!(error = %causes(&error), "no tests");
                Vec::new()
            });
            for record in claimed {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { break };
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    if let Err(error) = this.test(&record).await {
                        tracing::warn!(error = %causes(&error), "a test came to nothing");
                    }
                    drop(place);
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn test(&self, record: &Record) -> Result<(), StoreError> {
        let result = timeout(self.config.timeout, self.visit(record)).await;
        let result = result.unwrap_or_else(|_| Err(Failed::ExitBridge("no answer in time".into())));
        let result = result.and_then(|seen| Ok((self.refuse(seen.egress)?, seen)));
        if let Err(failed) = &result {
            tracing::debug!(error = %failed, "an exit bridge did not pass");
        }
        let now = SystemTime::now();
        let is_us = self.is_us(record, &result, now);
        let draw = rand::rng().random_range(0.5..1.0);
        let test = match result {
            // We can't tell: as if it had not been tested.
            Err(_) if is_us => Test { next: now + SECOND_LOOK, ..record.test.clone() },
            Err(_) => failed(record, &self.config, now, draw),
            Ok((refused, seen)) => {
                let country = self.country(seen.egress).or(record.claimed_country);
                passed(&seen, refused, country, &self.config, now, draw)
            }
        };
        if self.store.note(record.identity(), &test, now).await? == Noted::EgressShared {
            let test = refused(&test, Standing::EgressIsShared, &self.config, now);
            self.store.note(record.identity(), &test, now).await?;
        }
        Ok(())
    }

    /// Visits the echo through the exit bridge.
    async fn visit(&self, record: &Record) -> Result<Seen, Failed> {
        let circuit = self.paths.build(&record.line.reach, PathKind::Vanguards).await?;
        let broke = |error: &dyn std::fmt::Display| Failed::ExitBridge(error.to_string());
        let mut expected = self.echo.expect();
        let (host, port) = (self.echo_address.ip().to_string(), self.echo_address.port());
        let start = Instant::now();
        let stream = circuit.begin(&host, port, true).await;
        let mut stream = stream.map_err(|e| Failed::ExitBridge(e.report().to_string()))?;
        let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", expected.path, self.echo_address);
        stream.write_all(request.as_bytes()).await.map_err(|e| broke(&e))?;
        stream.flush().await.map_err(|e| broke(&e))?;
        let mut page = [0; 16 * 1024];
        let mut length = 0;
        let mut first = None;
        loop {
            let n = stream.read(&mut page).await.map_err(|e| broke(&e))?;
            if n == 0 {
                break;
            }
            first.get_or_insert_with(Instant::now);
            length += n;
        }
        let end = Instant::now();
        // A head came before the page.
        if length <= PAGE_LEN {
            return Err(Failed::ExitBridge(format!("{length} bytes of {PAGE_LEN}")));
        }
        let egress = expected.visitor.try_recv();
        let egress = egress.map_err(|_| Failed::ExitBridge("the echo was not visited".into()))?;
        let first = first.unwrap_or(end);
        let seconds = end.duration_since(first).as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss)] // a page is short
        let bytes_per_second = length as f64 / seconds;
        Ok(Seen { egress, latency: first - start, bytes_per_second })
    }

    /// Is it our own fault that a test failed? For what other exit bridges do as well.
    fn is_us<T>(&self, record: &Record, result: &Result<T, Failed>, at: SystemTime) -> bool {
        let now = Instant::now();
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => lately.passed(now),
            Err(Failed::ExitBridge(_)) if record.test.live_until > at => {
                lately.failed(*record.identity(), now);
            }
            Err(_) => {}
        }
        matches!(result, Err(Failed::Tor(_))) || lately.is_us(now)
    }

    /// Is this address no use as egress?
    fn refuse(&self, egress: IpAddr) -> Result<Option<Standing>, Failed> {
        let netdir = self.netdir.netdir(Timeliness::Unchecked).ok();
        let is_relay = |egress| {
            let near = |relay: tor_netdir::Relay<'_>| relay.addrs().any(|a| neighbourhood(a.ip()) == egress);
            netdir.as_ref().map(|netdir| netdir.relays().any(near))
        };
        refuse(egress, &self.config.allow_egress, is_relay)
    }

    fn country(&self, egress: IpAddr) -> Option<Country> {
        self.geoip.lookup_country_code(egress)?.as_ref().parse().ok()
    }
}

/// Is this address no use as egress? `is_relay` says whether a relay of Tor is there, if it can tell.
fn refuse(
    egress: IpAddr,
    allow: &[IpNet],
    is_relay: impl FnOnce(IpAddr) -> Option<bool>,
) -> Result<Option<Standing>, Failed> {
    if special_use(egress).is_some() && !allow.iter().any(|net| net.contains(&egress)) {
        return Ok(Some(Standing::EgressIsSpecial));
    }
    match is_relay(neighbourhood(egress)) {
        Some(is_relay) => Ok(is_relay.then_some(Standing::EgressIsTorRelay)),
        None => Err(Failed::Tor("no consensus to look egress addresses up in".into())),
    }
}

/// What a test leaves behind that came through. `draw` is from 0.5 to 1.
fn passed(
    seen: &Seen,
    refuse: Option<Standing>,
    country: Option<Country>,
    config: &Tests,
    now: SystemTime,
    draw: f64,
) -> Test {
    let test = Test {
        standing: Standing::Serving,
        // Until the next test has had its time, and the second look that a failure gets.
        live_until: now + config.handed_out_for(),
        egress: Some(neighbourhood(seen.egress)),
        country,
        latency: Some(seen.latency),
        speed: Speed::of(seen.bytes_per_second),
        failures: 0,
        next: now + config.every.mul_f64(draw),
    };
    match refuse {
        Some(standing) => refused(&test, standing, config, now),
        None => test,
    }
}

/// It works, but can't be used.
fn refused(test: &Test, standing: Standing, config: &Tests, now: SystemTime) -> Test {
    let next = now + config.every.max(Duration::from_secs(60));
    Test { standing, live_until: UNIX_EPOCH, egress: None, next, ..test.clone() }
}

/// What a test leaves behind that failed: one may be anybody's fault and is made again soon; with the
/// second the exit bridge is taken off the ring.
fn failed(record: &Record, config: &Tests, now: SystemTime, draw: f64) -> Test {
    let before = &record.test;
    let failures = before.failures.saturating_add(1);
    if before.live_until > now && failures == 1 {
        return Test { failures, next: now + SECOND_LOOK.min(config.every).mul_f64(draw), ..before.clone() };
    }
    let pause = SECOND_LOOK.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
    Test {
        standing: Standing::Unreachable,
        live_until: UNIX_EPOCH,
        egress: None,
        failures,
        next: now + pause.mul_f64(draw),
        ..before.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Partition;
    use eebt_proto::{BridgeLine, OnionReach, PortSet, Reach};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn record() -> Record {
        Record {
            line: BridgeLine {
                reach: Reach::Onion(OnionReach { service: [1; 32] }),
                ports: PortSet::web(),
                expires: None,
            },
            published: now(),
            expires: now() + Duration::from_secs(3600),
            claimed_country: None,
            partition: Partition::Open,
            withdrawn: false,
            test: Test {
                standing: Standing::Waiting,
                live_until: UNIX_EPOCH,
                egress: None,
                country: None,
                latency: None,
                speed: Speed::Medium,
                failures: 0,
                next: now(),
            },
        }
    }

    fn seen() -> Seen {
        Seen { egress: [203, 0, 113, 1].into(), latency: Duration::from_millis(100), bytes_per_second: 1e6 }
    }

    #[test]
    fn who_passes_is_handed_out_until_the_next_test_had_its_time() {
        let config = Tests::default();
        let test = passed(&seen(), None, None, &config, now(), 1.0);
        assert_eq!((test.standing, test.speed), (Standing::Serving, Speed::Medium));
        let next_fails = test.next + config.timeout + SECOND_LOOK + config.timeout;
        assert!(test.live_until > next_fails, "a slow test and a second look fit in");
    }

    #[test]
    fn one_failure_is_forgiven_and_the_second_is_not() {
        let config = Tests::default();
        let live = Record { test: passed(&seen(), None, None, &config, now(), 1.0), ..record() };
        let once = failed(&live, &config, now(), 1.0);
        assert_eq!((once.standing, once.live_until), (Standing::Serving, live.test.live_until));
        assert!(once.next <= now() + SECOND_LOOK);
        let twice = failed(&Record { test: once, ..record() }, &config, now(), 1.0);
        assert_eq!((twice.standing, twice.live_until), (Standing::Unreachable, UNIX_EPOCH));
        assert_eq!(twice.egress, None);
    }

    #[test]
    fn who_never_passed_is_tested_less_and_less() {
        let config = Tests::default();
        let mut record = record();
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            record.test = failed(&record, &config, now(), 1.0);
            let pause = record.test.next.duration_since(now()).unwrap();
            assert!(pause >= last && pause <= LONGEST_PAUSE);
            last = pause;
        }
        assert_eq!(last, LONGEST_PAUSE);
    }

    #[test]
    fn private_addresses_and_those_of_relays_are_of_no_use() {
        let (public, private) = (IpAddr::from([203, 0, 114, 1]), IpAddr::from([192, 168, 1, 1]));
        let says = |egress, allow: &[IpNet], is_relay| refuse(egress, allow, |_| is_relay).ok();
        let home = ["192.168.0.0/16".parse().unwrap()];
        assert_eq!(says(public, &[], Some(false)), Some(None));
        assert_eq!(says(public, &[], Some(true)), Some(Some(Standing::EgressIsTorRelay)));
        assert_eq!(says(private, &[], Some(false)), Some(Some(Standing::EgressIsSpecial)));
        assert_eq!(says([127, 0, 0, 1].into(), &home, Some(false)), Some(Some(Standing::EgressIsSpecial)));
        assert_eq!(says(private, &home, Some(false)), Some(None));
        assert_eq!(says(private, &home, Some(true)), Some(Some(Standing::EgressIsTorRelay)));
        // Nobody is handed out who could be a relay.
        assert_eq!(says(public, &[], None), None);
        assert!(matches!(refuse(public, &[], |_| None), Err(Failed::Tor(_))));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        let at = |text: &str| Seen { egress: text.parse().unwrap(), ..seen() };
        let config = Tests::default();
        let egress = |text| passed(&at(text), None, None, &config, now(), 1.0).egress;
        assert_eq!(egress("2001:db8:1:2::3"), egress("2001:db8:1:2:f::1"));
        assert_ne!(egress("2001:db8:1:2::3"), egress("2001:db8:1:3::3"));
        assert_eq!(egress("203.0.114.1"), Some([203, 0, 114, 1].into()));
        let asked = |text: &str| {
            let mut asked = None;
            let _ = refuse(text.parse().unwrap(), &["2001:db8::/32".parse().unwrap()], |at| {
                asked = Some(at);
                None
            });
            asked
        };
        assert_eq!(asked("2001:db8:1:2::3"), Some("2001:db8:1:2::".parse().unwrap()));
    }

    #[test]
    fn when_all_fail_at_once_it_is_us() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lately = Lately::default();
        for n in 0..7 {
            lately.failed([n; 32], at(0));
            lately.failed([n; 32], at(1)); // again, and counted once
        }
        assert!(!lately.is_us(at(1)));
        lately.failed([7; 32], at(2));
        assert!(lately.is_us(at(2)));
        lately.passed(at(3));
        assert!(!lately.is_us(at(3)), "one came through");
        assert!(!lately.is_us(at(61)), "and those that failed did so a while ago");
        for n in 0..8 {
            lately.failed([n; 32], at(62));
        }
        assert!(!lately.is_us(at(62)));
        assert!(lately.is_us(at(63)), "a minute after the last one that passed");
        assert!(!lately.is_us(at(122)));
        lately.failed([9; 32], at(130));
        assert_eq!(lately.failed.len(), 1, "nothing old is kept");
    }

    #[test]
    fn an_address_of_no_use_is_not_handed_out() {
        let config = Tests::default();
        let test = passed(&seen(), Some(Standing::EgressIsTorRelay), None, &config, now(), 1.0);
        assert_eq!((test.standing, test.live_until), (Standing::EgressIsTorRelay, UNIX_EPOCH));
        assert_eq!(test.egress, None, "somebody else may still have it");
    }
}
