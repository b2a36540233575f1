//! The bounds that protect an exit bridge, its provider's patience and the rest of the Internet
//! from a client that abuses it. Pure functions of time: the caller says what `now` is.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use eebt_proto::Target;
use eebt_tor::ConfigError;
use serde::Deserialize;

/// Bounds for each circuit, and for the exit bridge as a whole.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Streams open at once on one circuit.
    pub streams_per_circuit: u32,
    /// New streams on one circuit: steady rate a second, and burst.
    pub new_streams: Rate,
    /// Targets on one circuit that it did not ask for lately: steady rate a second, and burst.
    pub new_targets: Rate,
    /// Connects that failed on one circuit: steady rate a second, and burst. Port scans run into it.
    pub failed_connects: Rate,
    /// Bytes of one circuit, both ways: steady rate a second, and burst.
    pub bytes: Rate,
    /// Streams open at once in all.
    pub streams: u32,
    /// Connects to targets going on at once.
    pub connects: u32,
    /// Targets of all circuits that theirs did not ask for lately: steady rate a second, and burst. The second half of it is for circuits
    /// that asked for few.
    pub total_new_targets: Rate,
    /// Connects that failed on all circuits, likewise: what a scan from many circuits runs into.
    pub total_failed_connects: Rate,
    /// Bytes of all circuits, both ways: steady rate a second, and burst.
    pub total_bytes: Rate,
    /// Channels open at once.
    pub channels: u32,
    /// Rendezvous circuits open at once: clients of the onion service.
    pub rendezvous_circuits: u32,
    /// Channel handshakes going on at once.
    pub handshakes: u32,
    /// Channel handshakes going on at once from one address.
    pub handshakes_per_address: u32,
    /// Time a channel handshake may take.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Time that looking up a name and connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time after which a stream that carries nothing is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Memory for queued cells, in MiB.
    pub memory_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_per_circuit: 512,
            new_streams: Rate { per_second: 20.0, burst: 250.0 },
            new_targets: Rate { per_second: 2.0, burst: 200.0 },
            failed_connects: Rate { per_second: 0.5, burst: 50.0 },
            bytes: Rate { per_second: 25e6, burst: 250e6 },
            streams: 8192,
            connects: 512,
            total_new_targets: Rate { per_second: 200.0, burst: 10_000.0 },
            total_failed_connects: Rate { per_second: 20.0, burst: 1000.0 },
            total_bytes: Rate { per_second: 125e6, burst: 1250e6 },
            channels: 4096,
            rendezvous_circuits: 1024,
            handshakes: 64,
            handshakes_per_address: 8,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(15 * 60),
            memory_mib: 256,
        }
    }
}

impl Limits {
    /// Refuses bounds that would let nothing through.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let rate_ok = |r: &Rate| r.per_second.is_finite() && r.per_second > 0.0 && r.burst >= 1.0;
        for (field, ok) in [
            ("limits.streams_per_circuit", self.streams_per_circuit > 0),
            ("limits.new_streams", rate_ok(&self.new_streams)),
            ("limits.new_targets", rate_ok(&self.new_targets)),
            ("limits.failed_connects", rate_ok(&self.failed_connects)),
            ("limits.bytes", rate_ok(&self.bytes) && self.bytes.burst >= 65536.0),
            ("limits.streams", self.streams > 0),
            ("limits.channels", self.channels > 0),
            ("limits.rendezvous_circuits", self.rendezvous_circuits > 0),
            ("limits.handshakes", self.handshakes > 0),
            ("limits.handshakes_per_address", self.handshakes_per_address > 0),
            ("limits.connects", self.connects > 0),
            ("limits.total_new_targets", rate_ok(&self.total_new_targets)),
            ("limits.total_failed_connects", rate_ok(&self.total_failed_connects)),
            ("limits.total_bytes", rate_ok(&self.total_bytes) && self.total_bytes.burst >= 65536.0),
            ("limits.handshake_timeout", !self.handshake_timeout.is_zero()),
            ("limits.connect_timeout", !self.connect_timeout.is_zero()),
            ("limits.idle_timeout", !self.idle_timeout.is_zero()),
            ("limits.memory_mib", self.memory_mib >= 16),
        ] {
            if !ok {
                let problem = "too small to serve anyone (rates above 0, bursts of at least 1; bytes.burst at least 65536; memory_mib at least 16)";
                return Err(ConfigError::Field { field, problem: problem.to_owned() });
            }
        }
        Ok(())
    }
}

/// A steady rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens that come back in a second.
    pub per_second: f64,
    /// Tokens at most.
    pub burst: f64,
}

/// A token bucket, full at first.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate.per_second).min(self.rate.burst);
        self.at = self.at.max(now);
    }

    /// Takes one token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    /// Takes `n` tokens, into debt if need be, and says how long to wait until the debt is paid.
    pub fn spend(&mut self, n: f64, now: Instant) -> Duration {
        self.refill(now);
        self.tokens -= n;
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.rate.per_second)
    }

    /// From now on at this rate. Debts stay.
    pub fn set_rate(&mut self, rate: Rate, now: Instant) {
        self.refill(now);
        self.rate = rate;
        self.tokens = self.tokens.min(rate.burst);
    }

    /// Is a token there?
    pub fn has_token(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= 1.0
    }

    /// Is a token there, and at least this part of the burst?
    fn has_part(&mut self, part: f64, now: Instant) -> bool {
        self.has_token(now) && self.tokens >= part * self.rate.burst
    }
}

/// How fast all streams together may be; each way can be changed while they are open.
pub struct Throttle {
    both: Mutex<TokenBucket>,
    up: Mutex<TokenBucket>,
    down: Mutex<TokenBucket>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To targets.
    Up,
    /// From targets.
    Down,
}

impl Throttle {
    /// Both ways together as fast as `total` says, and neither slower.
    pub fn new(total: Rate, now: Instant) -> Self {
        let bucket = || Mutex::new(TokenBucket::new(total, now));
        Self { both: bucket(), up: bucket(), down: bucket() }
    }

    fn bucket(&self, way: Way) -> &Mutex<TokenBucket> {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    /// From now on at this rate.
    pub fn set(&self, way: Way, rate: Rate, now: Instant) {
        self.bucket(way).lock().unwrap_or_else(PoisonError::into_inner).set_rate(rate, now);
    }

    /// Takes `n` bytes, and says how long to wait before they move on.
    pub fn spend(&self, way: Way, n: f64, now: Instant) -> Duration {
        let spend =
            |bucket: &Mutex<TokenBucket>| bucket.lock().unwrap_or_else(PoisonError::into_inner).spend(n, now);
        spend(&self.both).max(spend(self.bucket(way)))
    }
}

/// Why a circuit gets no stream now. Carries no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OverLimit {
    /// Streams open at once on this circuit.
    #[error("too many open streams on this circuit")]
    Streams,
    /// New streams a second on this circuit.
    #[error("too many new streams on this circuit")]
    NewStreams,
    /// Distinct targets on this circuit, or of it and all others.
    #[error("too many distinct targets")]
    Targets,
    /// Failed connects, likewise.
    #[error("too many failed connects")]
    FailedConnects,
    /// Streams open at once on the exit bridge.
    #[error("too many open streams in all")]
    Total,
}

/// A circuit is modest that still has this part of its own burst. All others have the first half of what all may use up, so that one that
/// abuses the exit bridge does not take it from everybody else. Who comes with many circuits does.
const MODEST: f64 = 0.8;
const SHARED: f64 = 0.5;

/// Which part of a total has to be there for a circuit?
fn needs(of_circuit: &mut TokenBucket, now: Instant) -> f64 {
    if of_circuit.has_part(MODEST, now) { 0.0 } else { SHARED }
}

/// Streams of one circuit to where directories test, if the owner lets nobody else go there.
const TESTS: u32 = 2;

/// What all circuits have used up.
pub struct TotalLimits {
    new_targets: TokenBucket,
    failed_connects: TokenBucket,
}

impl TotalLimits {
    /// Nothing so far.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            new_targets: TokenBucket::new(limits.total_new_targets, now),
            failed_connects: TokenBucket::new(limits.total_failed_connects, now),
        }
    }
}

/// What one circuit has used up.
pub struct CircuitLimits {
    new_streams: TokenBucket,
    new_targets: TokenBucket,
    failed_connects: TokenBucket,
    /// Keyed hashes of targets asked for lately; the key dies with the circuit.
    targets: HashSet<u64>,
    tests: u32,
    keyed: RandomState,
    burst: usize,
}

impl CircuitLimits {
    /// A circuit that has used nothing yet.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        // A burst is checked to be positive, and this many targets are remembered.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let burst = limits.new_targets.burst.min(65536.0) as usize;
        Self {
            new_streams: TokenBucket::new(limits.new_streams, now),
            new_targets: TokenBucket::new(limits.new_targets, now),
            failed_connects: TokenBucket::new(limits.failed_connects, now),
            targets: HashSet::new(),
            tests: 0,
            keyed: RandomState::new(),
            burst,
        }
    }

    /// May this circuit have one more stream? Asked for every BEGIN and RESOLVE. `total` is what all circuits use up.
    ///
    /// # Errors
    /// The bound that was hit.
    pub fn admit(&mut self, target: &Target, total: &mut TotalLimits, now: Instant) -> Result<(), OverLimit> {
        if !self.new_streams.take(now) {
            return Err(OverLimit::NewStreams);
        }
        let part = needs(&mut self.failed_connects, now);
        if !self.failed_connects.has_token(now) || !total.failed_connects.has_part(part, now) {
            return Err(OverLimit::FailedConnects);
        }
        let hash = self.keyed.hash_one(target);
        if !self.targets.contains(&hash) {
            let part = needs(&mut self.new_targets, now);
            if !self.new_targets.has_token(now) || !total.new_targets.has_part(part, now) {
                return Err(OverLimit::Targets);
            }
            self.new_targets.take(now);
            total.new_targets.take(now);
            if self.targets.len() >= self.burst {
                self.targets.clear();
            }
            self.targets.insert(hash);
        }
        Ok(())
    }

    /// May this circuit go once more to where directories test?
    pub fn take_test(&mut self) -> bool {
        self.tests += 1;
        self.tests <= TESTS
    }

    /// A connect of this circuit failed.
    pub fn note_failed_connect(&mut self, total: &mut TotalLimits, now: Instant) {
        self.failed_connects.take(now);
        total.failed_connects.take(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(i: u16) -> Target {
        Target::new(&format!("host{i}.example.com"), 443).unwrap()
    }

    #[test]
    fn each_way_has_its_own_rate_and_follows_its_change() {
        let now = Instant::now();
        let total = Rate { per_second: 1e6, burst: 1e6 };
        let throttle = Throttle::new(total, now);
        throttle.set(Way::Down, Rate { per_second: 1000.0, burst: 1000.0 }, now);
        assert_eq!(throttle.spend(Way::Up, 1000.0, now), Duration::ZERO);
        assert_eq!(throttle.spend(Way::Down, 3000.0, now), Duration::from_secs(2));
        throttle.set(Way::Down, Rate { per_second: 4000.0, burst: 1000.0 }, now);
        assert_eq!(throttle.spend(Way::Down, 0.0, now), Duration::from_millis(500));
        // Both ways together stay under the total.
        assert_eq!(throttle.spend(Way::Up, 1_996_000.0, now), Duration::from_secs(1));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_second: 10.0, burst: 5.0 }, start);
        assert_eq!((0..10).filter(|_| bucket.take(start)).count(), 5);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 5, "never above the burst");
        let wait = bucket.spend(20.0, later);
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-6);
        assert!(!bucket.has_token(later + Duration::from_millis(2050)));
        assert!(bucket.has_token(later + Duration::from_millis(2150)));
    }

    #[test]
    fn time_that_goes_backwards_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(Rate { per_second: 1.0, burst: 1.0 }, start);
        assert!(bucket.take(start));
        assert!(!bucket.take(start - Duration::from_secs(5)));
        assert!(!bucket.take(start + Duration::from_millis(900)));
    }

    #[test]
    fn a_port_scan_runs_into_distinct_targets() {
        let now = Instant::now();
        let limits = Limits { new_targets: Rate { per_second: 1.0, burst: 10.0 }, ..Limits::default() };
        let (mut circuit, mut total) = (CircuitLimits::new(&limits, now), TotalLimits::new(&limits, now));
        let admitted = (0..50).filter(|i| circuit.admit(&target(*i), &mut total, now).is_ok()).count();
        assert_eq!(admitted, 10);
        assert_eq!(circuit.admit(&target(0), &mut total, now), Ok(()), "a target of before costs nothing");
        assert_eq!(circuit.admit(&target(99), &mut total, now), Err(OverLimit::Targets));
    }

    #[test]
    fn failed_connects_close_the_circuit_for_a_while() {
        let now = Instant::now();
        let limits = Limits { failed_connects: Rate { per_second: 1.0, burst: 3.0 }, ..Limits::default() };
        let (mut circuit, mut total) = (CircuitLimits::new(&limits, now), TotalLimits::new(&limits, now));
        for _ in 0..3 {
            assert_eq!(circuit.admit(&target(0), &mut total, now), Ok(()));
            circuit.note_failed_connect(&mut total, now);
        }
        assert_eq!(circuit.admit(&target(0), &mut total, now), Err(OverLimit::FailedConnects));
        assert_eq!(circuit.admit(&target(0), &mut total, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn new_streams_are_bounded() {
        let now = Instant::now();
        let limits = Limits::default();
        let (mut circuit, mut total) = (CircuitLimits::new(&limits, now), TotalLimits::new(&limits, now));
        let admitted = (0..1000).filter(|_| circuit.admit(&target(0), &mut total, now).is_ok()).count();
        assert_eq!(admitted, 250);
        assert_eq!(circuit.admit(&target(0), &mut total, now), Err(OverLimit::NewStreams));
    }

    #[test]
    fn a_scan_from_many_circuits_runs_into_the_total_of_which_modest_ones_have_the_second_half() {
        let now = Instant::now();
        let few = |burst| Rate { per_second: 0.001, burst };
        let limits = Limits {
            new_targets: few(10.0),
            total_new_targets: few(30.0),
            failed_connects: few(10.0),
            total_failed_connects: few(15.0),
            ..Limits::default()
        };
        // A circuit is modest for 3: then less than 8 of 10 are left.
        let mut total = TotalLimits::new(&limits, now);
        let mut scan = |fails: bool| {
            let mut circuit = CircuitLimits::new(&limits, now);
            let admitted = (0..50).filter(|i| {
                let admitted = circuit.admit(&target(*i), &mut total, now).is_ok();
                if admitted && fails {
                    circuit.note_failed_connect(&mut total, now);
                }
                admitted
            });
            admitted.count()
        };
        // The first one ends where less than half of 15 is left; the others share the rest, while they are modest.
        assert_eq!([scan(true), scan(true), scan(true), scan(true)], [8, 3, 3, 1]);
        assert_eq!(scan(true), 0, "nobody passes the total");
        let mut total = TotalLimits::new(&limits, now);
        let mut scan = || {
            let mut circuit = CircuitLimits::new(&limits, now);
            (0..50).filter(|i| circuit.admit(&target(*i), &mut total, now).is_ok()).count()
        };
        assert_eq!([scan(), scan(), scan(), scan(), scan()], [10, 6, 3, 3, 3], "of 30 targets");
    }

    #[test]
    fn a_circuit_goes_twice_to_where_directories_test() {
        let mut circuit = CircuitLimits::new(&Limits::default(), Instant::now());
        assert_eq!([(); 4].map(|()| circuit.take_test()), [true, true, false, false]);
    }
}
