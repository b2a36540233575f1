//! One instance, the states it goes through, and what its state and its process say together.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cloud::MicroUsd;

/// How long after its expiry, or after it was told to stop, an instance may still be at work.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long a stopping exit bridge lets its streams run on.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long the folder of an ended instance, with its log, is kept.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Who runs the machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Processes on this machine. Costs nothing.
    Local,
    /// EC2 of Amazon Web Services: Spot Instances, or on demand.
    Aws,
    /// Servers of Hetzner Cloud.
    Hetzner,
    /// Droplets of DigitalOcean.
    #[value(name = "digitalocean")]
    DigitalOcean,
}

impl Provider {
    /// Every one, in order.
    const ALL: [Self; 4] = [Self::Local, Self::Aws, Self::Hetzner, Self::DigitalOcean];

    /// Its name in the ledger, in `--json` and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Aws => "aws",
            Self::Hetzner => "hetzner",
            Self::DigitalOcean => "digitalocean",
        }
    }

    /// Does a machine that switches itself off cost nothing any more? Where it does not, somebody must end it at its expiry.
    pub fn frees_what_is_off(self) -> bool {
        matches!(self, Self::Local | Self::Aws)
    }

    /// What a machine costs at least, however short its life.
    pub fn least_bill(self) -> MicroUsd {
        if self == Self::DigitalOcean { MicroUsd(10_000) } else { MicroUsd(0) }
    }

    /// Time is paid for in pieces of this, and one at least.
    pub fn paid_by(self) -> Duration {
        match self {
            // And a minute at least: see `cost.rs`.
            Self::Local | Self::Aws => Duration::from_secs(1),
            Self::Hetzner | Self::DigitalOcean => Duration::from_secs(3600),
        }
    }
}

/// How far an instance has come. The first four are steps of `eebt up`, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Intended; nothing exists yet.
    Planned,
    /// Its keys are on disk; nothing is ordered.
    Keys,
    /// Its configuration is on disk and its bridge line is known; its machine, if it has one of its own, is ordered.
    Config,
    /// Its process runs, or its machine is bought.
    Launched,
    /// Left to itself before it was ready (`--no-wait`).
    Starting,
    /// Has been ready.
    Running,
    /// Told to stop.
    Stopping,
    /// Stopped by the operator.
    Ended,
    /// Ended by itself at its expiry.
    Expired,
    /// Its process was gone before its expiry.
    Died,
    /// Never became ready, and was taken back.
    Failed,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 11] = [
        Self::Planned,
        Self::Keys,
        Self::Config,
        Self::Launched,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Ended,
        Self::Expired,
        Self::Died,
        Self::Failed,
    ];

    /// Still in the hands of the `eebt up` that makes it?
    pub fn is_creating(self) -> bool {
        matches!(self, Self::Planned | Self::Keys | Self::Config | Self::Launched)
    }

    /// Over for good?
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ended | Self::Expired | Self::Died | Self::Failed)
    }

    /// Its name in the ledger and in `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Keys => "keys",
            Self::Config => "config",
            Self::Launched => "launched",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
            Self::Expired => "expired",
            Self::Died => "died",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| format!("no state {text:?}"))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Provider {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|provider| provider.as_str() == text).ok_or_else(|| format!("no provider {text:?}"))
    }
}

/// What the ledger knows of one instance. No `Debug`: whoever sees `line` may use the exit bridge.
#[derive(Clone)]
pub struct Instance {
    /// Its name: eight letters and digits.
    pub id: String,
    /// The `eebt up` that made it; scopes a provider's idempotency token.
    pub attempt: String,
    /// Who runs it.
    pub provider: Provider,
    /// How far it has come.
    pub state: State,
    /// Where clients reach it, and what origins see (the IP). Known once there is a machine.
    pub address: Option<SocketAddr>,
    /// Where it listens: differs from `address` behind a 1:1 NAT.
    pub listen: SocketAddr,
    /// Its status page, on loopback.
    pub status: SocketAddr,
    /// When it was planned.
    pub created: SystemTime,
    /// When it ends by itself.
    pub expires: SystemTime,
    /// When it was seen to be over.
    pub ended: Option<SystemTime>,
    /// Its bridge line; gone when it has ended.
    pub line: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// The claim of the `eebt` that works on it now.
    pub claim: Option<String>,
    /// Another `eebt` asks the holder of the claim to take it down.
    pub stop_requested: bool,
    /// When a stopping one is killed; known once it has been told to stop.
    pub stop_by: Option<SystemTime>,
    /// Why it ended, if not by the operator's wish.
    pub last_error: Option<String>,
    /// When it was first seen to serve.
    pub ready: Option<SystemTime>,
    /// Who knows it for what it is: a canary origin, or a block list.
    pub burned: Option<String>,
    /// The machine that was bought for it.
    pub purchase: Option<Purchase>,
}

impl Instance {
    /// One of which nothing else is known yet; `life` is from when it was planned until it ends by itself.
    pub(crate) fn new(
        id: String,
        attempt: String,
        provider: Provider,
        state: State,
        (listen, status): (SocketAddr, SocketAddr),
        life: Range<SystemTime>,
    ) -> Self {
        Self {
            id,
            attempt,
            provider,
            state,
            address: None,
            listen,
            status,
            created: life.start,
            expires: life.end,
            ended: None,
            line: None,
            pid: None,
            claim: None,
            stop_requested: false,
            stop_by: None,
            last_error: None,
            ready: None,
            burned: None,
            purchase: None,
        }
    }

    /// Where its machine is.
    pub fn region(&self) -> Option<&str> {
        self.purchase.as_ref().map(|purchase| purchase.region.as_str())
    }

    /// The cloud's name for its machine, once known.
    pub fn machine(&self) -> Option<&str> {
        self.purchase.as_ref()?.machine.as_deref()
    }
}

/// What is bought for one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// Where.
    pub region: String,
    /// What, as the cloud calls it.
    pub kind: String,
    /// For an hour, at most.
    pub price: MicroUsd,
    /// For all traffic that it may carry in its life, at most.
    pub traffic: MicroUsd,
    /// Under which it was ordered last, if it was.
    pub token: Option<String>,
    /// The cloud's name for the machine, once known.
    pub machine: Option<String>,
}

/// What to do about an instance that `eebt` finds in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as the ledger says, or someone is at work on it.
    Leave,
    /// Its `eebt up` is gone: undo its steps.
    Unwind,
    /// It may have become ready.
    Probe,
    /// Its process is gone: record this state.
    Finish(State),
    /// Its `eebt down` is gone, and may not have told it: tell it to stop.
    Terminate,
    /// It is overdue: kill it and record this state.
    Kill(State),
}

/// What a row, its process (is there one?) and its claim (does the holder live?) say together.
pub fn verdict(row: &Instance, process: bool, claimed: bool, now: SystemTime) -> Verdict {
    let past = |at: SystemTime, by: Duration| now.duration_since(at).is_ok_and(|late| late >= by);
    match row.state {
        state if state.is_final() || claimed => Verdict::Leave,
        state if state.is_creating() => Verdict::Unwind,
        State::Stopping if !process => Verdict::Finish(State::Ended),
        // Once only: to an exit bridge a second SIGTERM means "at once".
        State::Stopping if row.stop_by.is_none() => Verdict::Terminate,
        State::Stopping if row.stop_by.is_some_and(|at| past(at, Duration::ZERO)) => {
            Verdict::Kill(State::Ended)
        }
        State::Stopping => Verdict::Leave,
        _ if !process && past(row.expires, Duration::ZERO) => Verdict::Finish(State::Expired),
        _ if !process => Verdict::Finish(State::Died),
        _ if past(row.expires, DRAIN + GRACE) => Verdict::Kill(State::Expired),
        State::Starting => Verdict::Probe,
        _ => Verdict::Leave,
    }
}

/// When an instance that is made at `now` ends, in whole seconds as bridge lines have it.
pub fn expiry(now: SystemTime, lifetime: Duration) -> SystemTime {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs((since + lifetime).as_secs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    pub(crate) fn row(id: &str, state: State) -> Instance {
        let places = ("127.45.0.1:20001".parse().unwrap(), "127.0.0.1:20002".parse().unwrap());
        Instance {
            address: Some(places.0),
            stop_by: (state == State::Stopping).then(|| at(500)),
            ..Instance::new(id.into(), "a".into(), Provider::Local, state, places, at(0)..at(1000))
        }
    }

    #[test]
    fn names_of_states_read_back() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }

    #[test]
    fn whoever_holds_the_claim_is_left_alone() {
        for state in State::ALL {
            for process in [true, false] {
                assert_eq!(verdict(&row("x", state), process, true, at(99_999)), Verdict::Leave, "{state}");
            }
        }
    }

    #[test]
    fn what_a_crashed_up_left_is_unwound() {
        for state in [State::Planned, State::Keys, State::Config, State::Launched] {
            for process in [true, false] {
                assert_eq!(verdict(&row("x", state), process, false, at(1)), Verdict::Unwind);
            }
        }
    }

    #[test]
    fn a_process_that_is_gone_died_before_the_expiry_and_expired_from_then_on() {
        let running = row("x", State::Running);
        assert_eq!(verdict(&running, true, false, at(999)), Verdict::Leave);
        assert_eq!(verdict(&running, false, false, at(999)), Verdict::Finish(State::Died));
        assert_eq!(verdict(&running, false, false, at(1000)), Verdict::Finish(State::Expired));
        assert_eq!(verdict(&row("x", State::Starting), true, false, at(999)), Verdict::Probe);
    }

    #[test]
    fn an_instance_that_outlives_its_expiry_is_killed() {
        let running = row("x", State::Running);
        assert_eq!(verdict(&running, true, false, at(1014)), Verdict::Leave);
        assert_eq!(verdict(&running, true, false, at(1015)), Verdict::Kill(State::Expired));
    }

    #[test]
    fn what_a_crashed_down_left_is_finished() {
        let stopping = row("x", State::Stopping);
        let untold = Instance { stop_by: None, ..stopping.clone() };
        assert_eq!(verdict(&untold, true, false, at(499)), Verdict::Terminate);
        assert_eq!(verdict(&stopping, true, false, at(499)), Verdict::Leave);
        assert_eq!(verdict(&stopping, true, false, at(500)), Verdict::Kill(State::Ended));
        assert_eq!(verdict(&stopping, false, false, at(1)), Verdict::Finish(State::Ended));
    }

    #[test]
    fn final_states_stay() {
        for state in State::ALL.into_iter().filter(|state| state.is_final()) {
            assert_eq!(verdict(&row("x", state), false, false, at(99_999)), Verdict::Leave);
        }
    }

    #[test]
    fn expiry_is_in_whole_seconds() {
        let now = at(100) + Duration::from_millis(700);
        assert_eq!(expiry(now, Duration::from_millis(60_500)), at(161));
    }
}
