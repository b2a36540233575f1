//! A whole network: started in the order that is fast, waited for with deadlines, ended for sure.

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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

mod chutney;
mod guests;
mod plan;
mod wait;

use chutney::Chutney;
pub use guests::UnlistedRelay;
use plan::{Plan, plan};
use wait::{TICK, contains_all, until_phase};

/// When in the initial voting interval relays start, and how much later authorities do; see [`until_phase`].
const RELAY_PHASE: Duration = Duration::from_millis(3300);
const AUTHORITIES_AFTER: Duration = Duration::from_millis(1000);
/// Seconds from one consensus to the next, where nothing else was asked for.
const VOTING_INTERVAL: u32 = 10;
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
    voting_interval: Option<u32>,
    chutney: Option<PathBuf>,
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
            voting_interval: None,
            chutney: std::env::var_os("TESTNET_CHUTNEY").filter(|path| !path.is_empty()).map(PathBuf::from),
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
        self.voting_interval = Some(seconds);
        self
    }

    /// Has Chutney run this network file, such as `chutney-configs/networks/basic`, which says what relays there are;
    /// `$CHUTNEY_PATH` is its checkout. By default `$TESTNET_CHUTNEY`, and without that no Chutney.
    pub fn chutney(mut self, network: impl Into<PathBuf>) -> Self {
        self.chutney = Some(network.into());
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
    chutney: Option<Chutney>,
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
        let started = match &builder.chutney {
            None => Self::start_in(&builder, dir).await,
            Some(network) => Self::start_chutney(&builder, network, dir).await,
        };
        match started {
            Ok(mut net) => {
                net.startup = begun.elapsed();
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

    async fn start_in(builder: &TestNetBuilder, dir: PathBuf) -> Result<Self, TestNetError> {
        let say = &builder.progress;
        let mut net = Self::empty(builder, dir)?;
        let nodes = net.dir.join("nodes");
        let keys = authority_keys(builder, &net.dir).await?;
        let plans = plan(builder, &net.slice, keys)?;
        net.common.authorities = plans.iter().filter_map(Plan::dir_authority).collect();
        for plan in &plans {
            let data = nodes.join(&plan.nickname).join("data");
            private_dir(&data)?;
            if let Some(keys) = &plan.keys {
                keys.install(&data)?;
            }
            let relay = plan.torrc(&builder.consensus_params);
            write_torrc(&nodes.join(&plan.nickname), &torrc::relay(&net.common, &data, &relay))?;
        }
        for plan in &plans {
            net.links.extend(plan.link(builder.latency).await?);
        }

        tokio::time::sleep(until_phase(RELAY_PHASE, SystemTime::now())).await;
        let started = Instant::now();
        say(&format!("starting {} relays", plans.len()));
        let (authorities, others) = plans.split_at(usize::from(builder.authorities));
        for plan in others {
            net.tors.push(net.spawn(&plan.nickname)?);
        }
        for plan in others {
            let relay = net.identity(plan).await?;
            net.relays.push(relay);
        }
        net.write_bandwidths()?;
        tokio::time::sleep(AUTHORITIES_AFTER.saturating_sub(started.elapsed())).await;
        for plan in authorities {
            net.tors.push(net.spawn(&plan.nickname)?);
        }
        for (index, plan) in authorities.iter().enumerate() {
            let relay = net.identity(plan).await?;
            net.relays.insert(index, relay);
        }

        say("waiting for a consensus that lists every relay");
        net.wait_for_consensus().await?;
        say("waiting for the relays to fetch it");
        net.wait_for_microdescs().await?;
        net.write_network_file()?;

        say("starting the plain Tor client");
        let (socks, control) = (net.socks, net.control);
        net.add("client", |common, data| torrc::client(common, data, socks, control)).await?;
        Ok(net)
    }

    /// A network in this folder in which nothing runs yet.
    fn empty(builder: &TestNetBuilder, dir: PathBuf) -> Result<Self, TestNetError> {
        let lock_path = dir.join(LOCK_FILE);
        let lock = lock::try_lock_as_me(&lock_path)
            .map_err(TestNetError::file("lock", &lock_path))?
            .ok_or_else(|| TestNetError::DirInUse { dir: dir.clone() })?;
        let slice = Slice::take()?;
        let nodes = dir.join("nodes");
        if nodes.exists() {
            fs::remove_dir_all(&nodes).map_err(TestNetError::file("remove", &nodes))?; // of a network before
        }
        let empty = dir.join("empty");
        fs::write(&empty, "").map_err(TestNetError::file("write", &empty))?;
        let common = Common {
            empty_file: empty,
            bandwidths: dir.join("bandwidths"),
            authorities: Vec::new(),
            scheduler: builder.scheduler,
            owner_pid: std::process::id(),
            voting_interval: builder.voting_interval.unwrap_or(VOTING_INTERVAL),
        };
        Ok(Self {
            name: builder.name.clone(),
            network_file: dir.join("network.toml"),
            socks: (slice.client(), free_port(slice.client(), 9050)?).into(),
            control: (slice.client(), free_port(slice.client(), 9051)?).into(),
            relays: Vec::new(),
            startup: Duration::ZERO,
            tors: Vec::new(),
            chutney: None,
            links: Vec::new(),
            temporary: None,
            slice,
            _lock: lock,
            program: builder.tor.clone(),
            latency: builder.latency,
            common,
            dir,
        })
    }

    /// What authorities vote for as the bandwidth of the relays that are known so far.
    fn write_bandwidths(&self) -> Result<(), TestNetError> {
        let path = &self.common.bandwidths;
        let text = torrc::bandwidths(&self.relays, SystemTime::now());
        fs::write(path, text).map_err(TestNetError::file("write", path))
    }

    fn write_network_file(&self) -> Result<(), TestNetError> {
        let v3idents: Vec<&str> =
            self.common.authorities.iter().filter_map(|line| torrc::v3ident(line)).collect();
        fs::write(&self.network_file, arti::network_file(&self.relays, &v3idents))
            .map_err(TestNetError::file("write", &self.network_file))
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
        if let Some(chutney) = &self.chutney {
            chutney.stop().await?;
        }
        if let Some(temporary) = self.temporary.take() {
            let path = temporary.path().to_owned();
            temporary.close().map_err(TestNetError::file("remove", path))?;
        }
        Ok(())
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
        self.wait_for(&format!("{name} to say Bootstrapped 100%"), name, || {
            contains_all(std::slice::from_ref(&log), &["Bootstrapped 100%".into()])
        })
        .await?;
        Ok(data)
    }

    /// Reads the identities that a relay has made for itself, as soon as it has.
    async fn identity(&mut self, plan: &Plan) -> Result<RelayInfo, TestNetError> {
        let data = self.node_dir(&plan.nickname).join("data");
        let identity = |file: &str| -> Option<String> {
            let text = fs::read_to_string(data.join(file)).ok()?;
            // A line that ends is a line that was written to its end.
            Some(text.strip_suffix('\n')?.split_once(' ')?.1.to_owned())
        };
        let mut found = None;
        self.wait_for(&format!("the keys of {}", plan.nickname), &plan.nickname, || {
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
