//! A whole network: started in the order that is fast, waited for with deadlines, ended for sure.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::arti;
use crate::delay::DelayLink;
use crate::error::TestNetError;
use crate::keys::{self, AuthorityKeys, private_dir};
use crate::lock;
use crate::process::Tor;
use crate::slice::{Slice, free_port};
use crate::torrc::{self, Common, RelayInfo, Role, Scheduler};

mod guests;
mod plan;

pub use guests::UnlistedRelay;
use plan::{Plan, plan};

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at what is waited for.
const TICK: Duration = Duration::from_millis(50);
/// When in the initial voting interval relays start, and how much later authorities do; see [`until_phase`].
const RELAY_PHASE: Duration = Duration::from_millis(3300);
const AUTHORITIES_AFTER: Duration = Duration::from_millis(1000);
/// How long tors get to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// The lock in a network's folder.
pub(crate) const LOCK_FILE: &str = "lock";

/// Hears one line per step of the start.
type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// What a network is to look like. Every default works.
#[derive(Clone)]
pub struct TestNetBuilder {
    name: String,
    dir: Option<PathBuf>,
    tor: PathBuf,
    authorities: u8,
    middles: u8,
    exits: u8,
    latency: Duration,
    scheduler: Scheduler,
    consensus_params: Vec<String>,
    voting_interval: u32,
    progress: Progress,
}

impl fmt::Debug for TestNetBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestNetBuilder")
            .field("name", &self.name)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Default for TestNetBuilder {
    fn default() -> Self {
        Self {
            name: "testnet".into(),
            dir: None,
            tor: std::env::var_os("TESTNET_TOR").map_or_else(|| "tor".into(), PathBuf::from),
            authorities: 4,
            middles: 5,
            exits: 2,
            latency: Duration::ZERO,
            scheduler: Scheduler::default(),
            consensus_params: Vec::new(),
            voting_interval: 10,
            progress: Arc::new(|_| ()),
        }
    }
}

impl TestNetBuilder {
    /// A name for people; it shows in the name of a temporary folder.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Where everything is written, and kept. The default is a new temporary folder, removed at the end.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The tor program; by default `$TESTNET_TOR`, or `tor` from the `PATH`.
    pub fn tor(mut self, program: impl Into<PathBuf>) -> Self {
        self.tor = program.into();
        self
    }

    /// How many authorities: 4 by default, at least 1. A consensus takes the bandwidths that they give all relays
    /// from three votes or more (dir-spec, "Computing a consensus"): with 4, one may be late.
    pub fn authorities(mut self, count: u8) -> Self {
        self.authorities = count.clamp(1, 9);
        self
    }

    /// How many relays that are neither authority nor exit: 5 by default, enough for lite vanguards.
    pub fn middles(mut self, count: u8) -> Self {
        self.middles = count.min(250);
        self
    }

    /// How many exits: 2 by default.
    pub fn exits(mut self, count: u8) -> Self {
        self.exits = count.min(250);
        self
    }

    /// A one-way delay on every link to a relay, client to guard included. None by default.
    pub fn latency(mut self, one_way: Duration) -> Self {
        self.latency = one_way;
        self
    }

    /// How every tor schedules its writes.
    pub fn scheduler(mut self, scheduler: Scheduler) -> Self {
        self.scheduler = scheduler;
        self
    }

    /// A consensus parameter that the authorities vote for, such as `("cc_alg", 0)` for fixed windows.
    pub fn consensus_param(mut self, name: &str, value: i32) -> Self {
        self.consensus_params.push(format!("{name}={value}"));
        self
    }

    /// Seconds from one consensus to the next: 10 by default; a divisor of a day.
    ///
    /// On a testing network C tor has time periods of onion services (rend-spec) that last 24 of these, whatever
    /// `hsdir_interval` says. Others find its onion services only where `hsdir_interval` says the same, in minutes, and
    /// Arti takes 5 minutes or more: an interval of 15 and `("hsdir_interval", 6)`.
    pub fn voting_interval(mut self, seconds: u32) -> Self {
        self.voting_interval = seconds;
        self
    }

    /// Is told each step of the start, for people who wait.
    pub fn progress(mut self, hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(hear);
        self
    }

    /// Starts the network and returns when its client has fetched everything it needs.
    ///
    /// # Errors
    /// When a step fails or takes too long; what was started is ended, the logs stay.
    pub async fn start(self) -> Result<TestNet, TestNetError> {
        TestNet::start(self).await
    }
}

/// A running network. Dropping it kills every process it started; [`TestNet::shutdown`] is the polite way.
#[derive(Debug)]
pub struct TestNet {
    name: String,
    dir: PathBuf,
    network_file: PathBuf,
    socks: SocketAddr,
    control: SocketAddr,
    relays: Vec<RelayInfo>,
    startup: Duration,
    // Dropped in this order: processes, their links, the folder, the addresses, the lock.
    tors: Vec<Tor>,
    links: Vec<DelayLink>,
    temporary: Option<TempDir>,
    slice: Slice,
    _lock: File,
    // What every further tor is made with.
    program: PathBuf,
    latency: Duration,
    common: Common,
}

impl TestNet {
    /// A network with defaults, to be changed and started.
    pub fn builder() -> TestNetBuilder {
        TestNetBuilder::default()
    }

    /// Starts a network; see [`TestNetBuilder::start`].
    ///
    /// # Errors
    /// When a step fails or takes too long.
    pub async fn start(builder: TestNetBuilder) -> Result<Self, TestNetError> {
        let begun = Instant::now();
        let (dir, temporary) = folder(&builder)?;
        match Self::start_in(&builder, dir, begun).await {
            Ok(mut net) => {
                net.temporary = temporary;
                (builder.progress)(&format!("network is up after {:.1} s", begun.elapsed().as_secs_f32()));
                Ok(net)
            }
            Err(error) => {
                // The error names a log; keep the folder that it is in.
                temporary.map(TempDir::keep);
                Err(error)
            }
        }
    }

    async fn start_in(builder: &TestNetBuilder, dir: PathBuf, begun: Instant) -> Result<Self, TestNetError> {
        let say = &builder.progress;
        let lock_path = dir.join(LOCK_FILE);
        let lock = lock::try_lock_as_me(&lock_path)
            .map_err(TestNetError::file("lock", &lock_path))?
            .ok_or_else(|| TestNetError::DirInUse { dir: dir.clone() })?;
        let slice = Slice::take()?;
        let keys = authority_keys(builder, &dir).await?;
        let plans = plan(builder, &slice, keys)?;
        let nodes = dir.join("nodes");
        if nodes.exists() {
            fs::remove_dir_all(&nodes).map_err(TestNetError::file("remove", &nodes))?; // of a network before
        }
        let empty = dir.join("empty");
        fs::write(&empty, "").map_err(TestNetError::file("write", &empty))?;
        let common = Common {
            empty_file: empty,
            bandwidths: dir.join("bandwidths"),
            authorities: plans.iter().filter_map(Plan::dir_authority).collect(),
            scheduler: builder.scheduler,
            owner_pid: std::process::id(),
            voting_interval: builder.voting_interval,
        };
        for plan in &plans {
            let data = nodes.join(&plan.nickname).join("data");
            private_dir(&data)?;
            if let Some(keys) = &plan.keys {
                keys.install(&data)?;
            }
            let relay = plan.torrc(&builder.consensus_params);
            write_torrc(&nodes.join(&plan.nickname), &torrc::relay(&common, &data, &relay))?;
        }
        let mut links = Vec::new();
        for plan in &plans {
            links.extend(plan.link(builder.latency).await?);
        }

        tokio::time::sleep(until_phase(RELAY_PHASE, SystemTime::now())).await;
        let started = Instant::now();
        let mut net = Self {
            name: builder.name.clone(),
            network_file: dir.join("network.toml"),
            socks: (slice.client(), free_port(slice.client(), 9050)?).into(),
            control: (slice.client(), free_port(slice.client(), 9051)?).into(),
            relays: Vec::new(),
            startup: Duration::ZERO,
            tors: Vec::new(),
            program: builder.tor.clone(),
            latency: builder.latency,
            common,
            links,
            temporary: None,
            slice,
            _lock: lock,
            dir: dir.clone(),
        };
        say(&format!("starting {} relays", plans.len()));
        let authorities = usize::from(builder.authorities);
        for plan in &plans[authorities..] {
            net.tors.push(net.spawn(&plan.nickname)?);
        }
        for (index, plan) in plans[authorities..].iter().enumerate() {
            let relay = net.identity(plan, index).await?;
            net.relays.push(relay);
        }
        let bandwidths = torrc::bandwidths(&net.relays, SystemTime::now());
        fs::write(&net.common.bandwidths, bandwidths)
            .map_err(TestNetError::file("write", &net.common.bandwidths))?;
        tokio::time::sleep(AUTHORITIES_AFTER.saturating_sub(started.elapsed())).await;
        for (index, plan) in plans[..authorities].iter().enumerate() {
            net.tors.insert(index, net.spawn(&plan.nickname)?); // tors are in the order of plans
        }
        for (index, plan) in plans[..authorities].iter().enumerate() {
            let relay = net.identity(plan, index).await?;
            net.relays.insert(index, relay);
        }

        say("waiting for a consensus that lists every relay");
        let consensuses: Vec<PathBuf> = plans
            .iter()
            .filter(|plan| plan.role == Role::Authority)
            .map(|plan| nodes.join(&plan.nickname).join("data/cached-microdesc-consensus"))
            .collect();
        let listed: Vec<String> = net.relays.iter().map(|r| format!("\nr {} ", r.nickname)).collect();
        net.wait_for("a consensus that lists every relay", 0, || {
            consensuses.iter().all(|path| contains_all(std::slice::from_ref(path), &listed))
        })
        .await?;

        say("waiting for the relays to fetch it");
        // SIGHUP makes them forget that nobody had a consensus when they first asked.
        for tor in net.tors.iter_mut().skip(authorities) {
            tor.signal(Signal::SIGHUP);
        }
        let ids: Vec<String> = net.relays.iter().map(|r| format!("id ed25519 {}\n", r.ed_identity)).collect();
        for (index, plan) in plans.iter().enumerate().skip(authorities) {
            let data = nodes.join(&plan.nickname).join("data");
            let caches = [data.join("cached-microdescs"), data.join("cached-microdescs.new")];
            let what = format!("{} to fetch all microdescriptors", plan.nickname);
            net.wait_for(&what, index, || contains_all(&caches, &ids)).await?;
        }
        let v3idents: Vec<String> =
            plans.iter().filter_map(|p| Some(p.keys.as_ref()?.v3ident.clone())).collect();
        fs::write(&net.network_file, arti::network_file(&net.relays, &v3idents))
            .map_err(TestNetError::file("write", &net.network_file))?;

        say("starting the plain Tor client");
        let (socks, control) = (net.socks, net.control);
        net.add("client", |common, data| torrc::client(common, data, socks, control)).await?;
        net.startup = begun.elapsed();
        Ok(net)
    }

    /// The folder with the network's files: `nodes/NAME/log` above all.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Arti configuration (TOML) with which an Arti program lives on this network.
    pub fn network_file(&self) -> &Path {
        &self.network_file
    }

    /// The SOCKS port of a plain C tor client on the network: the baseline.
    pub fn socks_addr(&self) -> SocketAddr {
        self.socks
    }

    /// The control port of that client; the cookie is in `nodes/client/data/control_auth_cookie`.
    pub fn control_addr(&self) -> SocketAddr {
        self.control
    }

    /// The address that every C tor exit here arrives from: tor binds no source address towards loopback.
    pub fn exit_egress_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// The relays: authorities, middles, exits.
    pub fn relays(&self) -> &[RelayInfo] {
        &self.relays
    }

    /// Where origins of this network listen by default.
    pub fn origin_ip(&self) -> IpAddr {
        self.slice.origins().into()
    }

    /// A loopback address that nothing else on this network was given, for an exit bridge or an origin.
    /// Each call gives another one.
    pub fn spare_ip(&self) -> IpAddr {
        self.slice.spare().into()
    }

    /// How long the start took.
    pub fn startup(&self) -> Duration {
        self.startup
    }

    /// The ids of the tor processes.
    pub fn pids(&self) -> Vec<u32> {
        self.tors.iter().map(Tor::pid).collect()
    }

    /// The id of the process of one tor: that of a relay's nickname, `client`, or one that was added.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.tors.iter().find(|tor| tor.name == name).map(Tor::pid)
    }

    /// Tells whether every tor still runs.
    ///
    /// # Errors
    /// Names the first one that does not, with the end of its log.
    pub fn check(&mut self) -> Result<(), TestNetError> {
        self.tors.iter_mut().try_for_each(Tor::check)
    }

    /// Asks every tor to end, waits, and kills what is left.
    ///
    /// # Errors
    /// When a temporary folder cannot be removed.
    pub async fn shutdown(mut self) -> Result<(), TestNetError> {
        for tor in &mut self.tors {
            tor.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && !self.tors.iter_mut().all(Tor::has_ended) {
            tokio::time::sleep(TICK).await;
        }
        self.tors.clear(); // kills the rest
        if let Some(temporary) = self.temporary.take() {
            let path = temporary.path().to_owned();
            temporary.close().map_err(TestNetError::file("remove", path))?;
        }
        Ok(())
    }

    /// Waits until `done`, for as long as every tor runs. `index` says whose log tells more.
    async fn wait_for(
        &mut self,
        what: &str,
        index: usize,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), TestNetError> {
        let start = Instant::now();
        loop {
            if done() {
                return Ok(());
            }
            self.check()?;
            if start.elapsed() > PATIENCE {
                return Err(TestNetError::TimedOut {
                    what: what.to_owned(),
                    waited: PATIENCE,
                    log: self.tors.get(index).map_or_else(|| self.dir.clone(), |tor| tor.log.clone()),
                });
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// The folder of one node.
    fn node_dir(&self, name: &str) -> PathBuf {
        self.dir.join("nodes").join(name)
    }

    /// Starts the tor whose torrc is written.
    fn spawn(&self, name: &str) -> Result<Tor, TestNetError> {
        Tor::spawn(&self.program, name, &self.node_dir(name), &self.common.empty_file)
    }

    /// Starts one more tor, and waits until it knows the network. Returns its data folder.
    async fn add(
        &mut self,
        name: &str,
        torrc: impl FnOnce(&Common, &Path) -> String,
    ) -> Result<PathBuf, TestNetError> {
        let dir = self.node_dir(name);
        let data = dir.join("data");
        private_dir(&data)?;
        write_torrc(&dir, &torrc(&self.common, &data))?;
        self.tors.push(self.spawn(name)?);
        let log = dir.join("log");
        self.wait_for(&format!("{name} to say Bootstrapped 100%"), self.tors.len() - 1, || {
            contains_all(std::slice::from_ref(&log), &["Bootstrapped 100%".into()])
        })
        .await?;
        Ok(data)
    }

    /// Reads the identities that a relay has made for itself, as soon as it has. `index` is that of its tor.
    async fn identity(&mut self, plan: &Plan, index: usize) -> Result<RelayInfo, TestNetError> {
        let data = self.node_dir(&plan.nickname).join("data");
        let identity = |file: &str| -> Option<String> {
            let text = fs::read_to_string(data.join(file)).ok()?;
            // A line that ends is a line that was written to its end.
            Some(text.strip_suffix('\n')?.split_once(' ')?.1.to_owned())
        };
        let mut found = None;
        self.wait_for(&format!("the keys of {}", plan.nickname), index, || {
            found = identity("fingerprint").zip(identity("fingerprint-ed25519"));
            found.is_some()
        })
        .await?;
        let (rsa_identity, ed_identity) = found.unwrap_or_default();
        Ok(RelayInfo {
            nickname: plan.nickname.clone(),
            role: plan.role,
            address: plan.address,
            orport: plan.orport,
            rsa_identity,
            ed_identity,
        })
    }
}

impl Drop for TestNet {
    fn drop(&mut self) {
        for tor in &mut self.tors {
            tor.signal(Signal::SIGKILL); // all at once; dropping each waits for it
        }
        if std::thread::panicking() {
            // A test failed: its logs may say why.
            self.temporary.take().map(TempDir::keep);
        }
    }
}

/// The folder to work in, and whether it is a temporary one.
fn folder(builder: &TestNetBuilder) -> Result<(PathBuf, Option<TempDir>), TestNetError> {
    if let Some(dir) = &builder.dir {
        private_dir(dir)?;
        let dir = dir.canonicalize().map_err(TestNetError::file("open", dir))?;
        return Ok((dir, None));
    }
    let temp = std::env::temp_dir();
    let dir = tempfile::Builder::new()
        .prefix(&format!("eebt-{}-", builder.name.replace('/', "-")))
        .tempdir()
        .map_err(TestNetError::file("create a folder in", temp))?;
    Ok((dir.path().to_owned(), Some(dir)))
}

/// Keys from the user's cache; without one, keys for this network only.
async fn authority_keys(builder: &TestNetBuilder, dir: &Path) -> Result<Vec<AuthorityKeys>, TestNetError> {
    let cache = keys::cache_dir().unwrap_or_else(|| dir.join("keys"));
    let (tor, count) = (builder.tor.clone(), builder.authorities);
    (builder.progress)("taking authority keys from the cache, or making them");
    let at = cache.clone();
    tokio::task::spawn_blocking(move || keys::authorities(&tor, &cache, count))
        .await
        .unwrap_or(Err(TestNetError::Malformed { path: at, problem: "the thread that makes keys panicked" }))
}

fn write_torrc(dir: &Path, text: &str) -> Result<(), TestNetError> {
    let path = dir.join("torrc");
    fs::write(&path, text).map_err(TestNetError::file("write", &path))
}

/// How long to wait for a phase of the initial voting interval, which follows the clock.
///
/// Authorities vote 3 s into each interval of 5 s (tor cuts both delays to 1 s), and vote late when they start
/// in the last 2 s. So they start just before an interval's end and vote 3.7 s later. Relays upload their
/// descriptors 2.3 to 3.1 s after their own start, or later on a busy machine, so they start a second before
/// the authorities: a vote that comes too early costs a whole interval, and the next is longer.
fn until_phase(phase: Duration, now: SystemTime) -> Duration {
    let interval = u128::from(torrc::INITIAL_VOTING_INTERVAL) * 1000;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let wait = (phase.as_millis() + interval - now % interval) % interval;
    Duration::from_millis(u64::try_from(wait).unwrap_or_default())
}

/// Whether the files together contain every string. A missing file is an empty one.
fn contains_all(files: &[PathBuf], wanted: &[String]) -> bool {
    let mut missing: HashSet<&String> = wanted.iter().collect();
    for file in files {
        let bytes = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        missing.retain(|wanted| !text.contains(wanted.as_str()));
    }
    missing.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_phase_is_always_ahead() {
        let phase = Duration::from_millis(2400);
        let at = |ms| until_phase(phase, UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(1_000_000_002_400), Duration::ZERO);
        assert_eq!(at(1_000_000_002_500), Duration::from_millis(4900));
        assert_eq!(at(1_000_000_000_000), Duration::from_millis(2400));
    }

    #[test]
    fn files_are_searched_together() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one\n").unwrap();
        let wanted = ["one".to_owned(), "two".to_owned()];
        assert!(!contains_all(&[a.clone(), b.clone()], &wanted));
        fs::write(&b, "two\n").unwrap();
        assert!(contains_all(&[a, b], &wanted));
    }
}
