//! From a target to a stream: the right way, and another exit bridge when one is dead.

mod person;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arti_client::isolation::IsolationHelper;
use arti_client::{StreamPrefs, TorClient};
use eebt_proto::BridgeLine;
use eebt_proto::special_use::special_use;
use eebt_tor::{CircuitError, PathKind, TorRuntime};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::AsyncRead;
use tokio::sync::{broadcast, mpsc, watch};
use tor_cell::relaycell::msg::EndReason;
use tor_error::{ErrorKind, HasKind as _};
use tor_proto::client::stream::DataStream;

use crate::auto::{self, Settled};
use crate::blocked::{Reason, TLS_HANDSHAKE};
use crate::blockers::Blockers;
use crate::bridges::{BridgeId, Bridges, Now, Source};
use crate::choices::Choices;
use crate::circuits::{Circuit, Circuits};
use crate::hello;
use crate::route::{Mode, Route, Rule, is_onion, normal, route};
use crate::verdicts::Verdicts;
use crate::visits::{Visits, Way};

pub use person::{Another, Why};

/// How long one exit bridge may keep us waiting before another one is tried beside it.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many circuits are built before the first stream.
const SPARES_AHEAD: usize = 3;

/// Most tries for one stream.
const MAX_TRIES: usize = 4;

/// What a stream's circuit may be shared with: streams of the same group only. As with C tor's
/// defaults that is the port it came in by, the protocol, the program's address and its credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Group {
    /// Address of ours that the program connected to.
    pub listener: std::net::SocketAddr,
    /// Protocol it spoke.
    pub protocol: Protocol,
    /// The program's address.
    pub peer: IpAddr,
    /// Its credentials, whatever they are.
    pub credentials: Vec<u8>,
}

/// What a program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// SOCKS4 or 4a.
    Socks4,
    /// SOCKS5.
    Socks5,
    /// HTTP CONNECT.
    HttpConnect,
}

impl Group {
    /// A group that nothing else is in.
    pub(crate) fn of_nobody() -> Self {
        let nowhere = (std::net::Ipv4Addr::UNSPECIFIED, 0);
        let credentials = rand::random::<[u8; 16]>().to_vec();
        Self { listener: nowhere.into(), protocol: Protocol::Socks5, peer: nowhere.0.into(), credentials }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[group]")
    }
}

impl IsolationHelper for Group {
    fn compatible_same_type(&self, other: &Self) -> bool {
        self == other
    }

    fn join_same_type(&self, other: &Self) -> Option<Self> {
        (self == other).then(|| self.clone())
    }
}

/// Why there is no stream. Carries no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The target's own answer, as the last hop told it.
    #[error("the target cannot be reached: {0}")]
    Target(TargetFailure),
    /// The name or address can't be asked for.
    #[error("not a target that can be reached over Tor")]
    BadTarget,
    /// No exit bridge is known that is alive and lets this port out.
    #[error("no exit bridge is known that is alive and lets this port out")]
    NoExitBridge,
    /// Exit bridges were tried, and none worked.
    #[error("no exit bridge could be reached (last: {0})")]
    ExitBridges(String),
    /// Plain Tor did not work.
    #[error("Tor cannot be used: {0}")]
    Tor(String),
    /// Arti has no way to look names up on such a path (with vanguards, or from a Tor bridge).
    #[error("names cannot be looked up by themselves on a path with vanguards or a Tor bridge")]
    NoLookUp,
    /// It took too long.
    #[error("no stream in time")]
    Timeout,
}

/// How a target failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetFailure {
    /// It refused the connection.
    Refused,
    /// It has no address, or no way leads there.
    Unreachable,
    /// It did not answer.
    TimedOut,
    /// The exit policy forbids it.
    Forbidden,
    /// Something else, or the last hop won't say.
    Other,
}

impl fmt::Display for TargetFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "it refused the connection",
            Self::Unreachable => "no such host, or no way to it",
            Self::TimedOut => "it did not answer",
            Self::Forbidden => "the exit policy forbids it",
            Self::Other => "the last hop gave up",
        })
    }
}

/// Opens streams and looks names up.
pub struct Connector {
    tor: Arc<TorClient<TorRuntime>>,
    circuits: Arc<Circuits<Group>>,
    bridges: Mutex<Bridges<Group>>,
    mode: Mode,
    rules: Vec<Rule>,
    path: PathKind,
    optimistic: bool,
    timeout: Duration,
    test_network: bool,
    failures: broadcast::Sender<BridgeId>,
    verdicts: Arc<Verdicts>,
    blockers: Arc<Blockers>,
    /// Where targets go that TLS was spoken with over Tor, if anybody asks them.
    tls_seen: Option<mpsc::Sender<Seen>>,
    choices: Choices,
    visits: Arc<Visits>,
    patience: Duration,
    /// How many exit-bridge directories are being asked: while one is, it is worth waiting.
    asking: watch::Receiver<usize>,
}

/// A target that TLS was just spoken with over Tor.
pub struct Seen {
    /// For whom.
    pub group: Group,
    /// Its host, in its one spelling.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// An open stream.
pub struct Opened {
    /// The stream; with optimistic data it may not be connected yet.
    pub stream: DataStream,
    /// The circuit to an exit bridge that it is on.
    pub circuit: Option<(BridgeId, Circuit)>,
    /// Over Tor, to a target that may turn Tor away: an exit bridge is the other way.
    pub undecided: bool,
}

impl Connector {
    /// A connector that knows no exit bridge yet.
    pub fn new(
        tor: Arc<TorClient<TorRuntime>>,
        circuits: Arc<Circuits<Group>>,
        config: &crate::Config,
        choices: Choices,
        asking: watch::Receiver<usize>,
        blockers: Arc<Blockers>,
        tls_seen: Option<mpsc::Sender<Seen>>,
    ) -> Self {
        Self {
            tor,
            circuits,
            bridges: Mutex::default(),
            mode: config.mode,
            rules: config.rules.clone(),
            path: config.path,
            optimistic: config.optimistic,
            timeout: config.connect_timeout,
            test_network: config.network.is_some(),
            failures: broadcast::Sender::new(16),
            verdicts: Arc::new(Verdicts::new(config.verdict_lifetime, config.verdict_file.clone())),
            blockers,
            tls_seen,
            choices,
            visits: Arc::new(Visits::new(config.page.is_some())),
            patience: config.patience,
            asking,
        }
    }

    /// The way for `host`: the person's own choice, then mode and rules.
    fn route(&self, host: &str) -> Route {
        self.choices.get(host).unwrap_or_else(|| route(self.mode, &self.rules, host))
    }

    /// Which way a stream goes.
    pub(crate) fn way(&self, host: &str, exit_bridge: Option<BridgeId>) -> Way {
        match exit_bridge {
            Some(id) => Way::ExitBridge(id, self.bridges().ordinal(id)),
            None if is_onion(host) => Way::Onion,
            None => Way::Tor,
        }
    }

    /// The exit bridges.
    pub fn bridges(&self) -> MutexGuard<'_, Bridges<Group>> {
        self.bridges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream to `host:port` for `group`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, group: &Group, host: &str, port: u16) -> Result<Opened, ConnectError> {
        let open = async {
            match self.route(host) {
                Route::Tor => self.through_tor(group, host, port).await,
                Route::ExitBridge => self.through_exit_bridge(group, host, port).await,
                Route::Auto if self.refuses_tor(group, host, port) => {
                    match self.through_exit_bridge(group, host, port).await {
                        // There is none that works: the target may say why it does not want Tor.
                        Err(ConnectError::NoExitBridge | ConnectError::ExitBridges(_)) => {
                            self.through_tor(group, host, port).await
                        }
                        opened => opened,
                    }
                }
                Route::Auto => match self.through_tor(group, host, port).await {
                    Ok(opened) => Ok(Opened { undecided: true, ..opened }),
                    Err(error) => {
                        let Some(reason) = worth_an_exit_bridge(&error) else { return Err(error) };
                        let opened = self.through_exit_bridge(group, host, port).await.map_err(|_| error)?;
                        // Without optimistic data an open stream is one that the target has taken.
                        if !self.optimistic {
                            self.verdicts.note(group, host, port, reason, SystemTime::now());
                        }
                        Ok(opened)
                    }
                },
            }
        };
        tokio::time::timeout(self.timeout, open).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// Takes over a new list of exit bridges, and builds circuits to a few of them before anybody waits for one. How
    /// many are alive, from all sources.
    pub fn replace_bridges(&self, source: Source, lines: Vec<BridgeLine>) -> usize {
        let (alive, ahead) = {
            let mut bridges = self.bridges();
            bridges.replace(source, lines);
            let now = Now::read();
            let ids = bridges.some(SPARES_AHEAD, now).into_iter();
            let lines = ids.filter_map(|id| self.way_to(&bridges, id));
            (bridges.alive(now), lines.collect::<Vec<_>>())
        };
        if self.mode != Mode::Never {
            for (id, line, path) in ahead {
                self.circuits.build_spare(id, line, path);
            }
        }
        alive
    }

    fn refuses_tor(&self, group: &Group, host: &str, port: u16) -> bool {
        self.blockers.contains(host) || self.verdicts.refuses(group, host, port, SystemTime::now())
    }

    /// Which targets turned Tor away.
    pub fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// A stream over plain Tor, whatever the rules say.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn through_tor(
        &self,
        group: &Group,
        host: &str,
        port: u16,
    ) -> Result<Opened, ConnectError> {
        let stream = self.tor.connect_with_prefs((host, port), &self.prefs(group)).await;
        let stream = stream.map_err(|error| plain_tor(&error))?;
        Ok(Opened { stream, circuit: None, undecided: false })
    }

    /// A stream through an exit bridge, whatever the rules say.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) async fn through_exit_bridge(
        &self,
        group: &Group,
        host: &str,
        port: u16,
    ) -> Result<Opened, ConnectError> {
        self.through_exit_bridge_of(group, group, host, port).await
    }

    /// The same through the exit bridge of `keeper`, on a circuit of `group`'s.
    pub(crate) async fn through_exit_bridge_of(
        &self,
        keeper: &Group,
        group: &Group,
        host: &str,
        port: u16,
    ) -> Result<Opened, ConnectError> {
        let target = eebt_proto::Target::new(host, port).map_err(|_| ConnectError::BadTarget)?;
        let begin = Begin { host: host_text(&target.host), port, optimistic: self.optimistic };
        let (stream, id, circuit) = self.on_exit_bridge(keeper, group, port, &begin).await?;
        Ok(Opened { stream, circuit: Some((id, circuit)), undecided: false })
    }

    /// Sees whether the target of an undecided stream answers Tor, and goes to an exit bridge if not.
    /// `sent` is what the program has said already. Beside it: whether the stream goes on through an exit bridge, and
    /// the circuit to that is gone.
    ///
    /// # Errors
    /// The program's side broke.
    pub(crate) async fn settle(
        &self,
        group: &Group,
        host: &str,
        port: u16,
        program: &mut (impl AsyncRead + Unpin),
        opened: Opened,
        mut sent: Vec<u8>,
    ) -> std::io::Result<(Settled<DataStream, (BridgeId, Circuit)>, bool)> {
        let other = async {
            let opening = self.through_exit_bridge(group, host, port);
            let opened = tokio::time::timeout(self.timeout, opening).await.ok()?;
            let opened = opened.inspect_err(|error| tracing::info!(%error, "no exit bridge instead of Tor"));
            opened.ok().and_then(|opened| Some((opened.stream, opened.circuit?)))
        };
        let mut settled = auto::settle(program, opened.stream, &mut sent, self.patience, other).await?;
        if let Some(reason) = settled.blocked {
            self.verdicts.note(group, host, port, reason, SystemTime::now());
        }
        if let (None, Some(&TLS_HANDSHAKE), Some(seen)) =
            (&settled.exit_bridge, settled.got.first(), &self.tls_seen)
            && hello::offers_http(&sent)
        {
            let _too_many_wait = seen.try_send(Seen { group: group.clone(), host: normal(host), port });
        }
        if let Some(overtaken) = settled.overtaken.take() {
            let (verdicts, patience) = (Arc::clone(&self.verdicts), self.patience);
            let (group, host) = (group.clone(), host.to_owned());
            tokio::spawn(async move {
                if auto::is_silent(overtaken, patience).await {
                    verdicts.note(&group, &host, port, Reason::Silent, SystemTime::now());
                }
            });
        }
        if let Some(((id, circuit), error)) = &settled.failed {
            self.note_break(group, *id, circuit, error, false).await;
        }
        let mut lost = false;
        if let Some((id, circuit)) = &settled.exit_bridge {
            let answered = !settled.got.is_empty();
            if answered {
                self.note_answer(*id, circuit);
            }
            if let Some(error) = &settled.broke {
                lost = self.note_break(group, *id, circuit, error, answered).await;
            }
        }
        Ok((settled, lost))
    }

    /// The addresses of a name, as seen from where a stream to it would leave.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn resolve(&self, group: &Group, host: &str) -> Result<Vec<IpAddr>, ConnectError> {
        let look_up = async {
            match self.route(host) {
                Route::Tor | Route::Auto => {
                    self.tor.resolve_with_prefs(host, &self.prefs(group)).await.map_err(|e| plain_tor(&e))
                }
                Route::ExitBridge => {
                    let target = eebt_proto::Target::new(host, 443).map_err(|_| ConnectError::BadTarget)?;
                    let names = Resolve(host_text(&target.host));
                    let (answer, ..) = self.on_exit_bridge(group, group, 443, &names).await?;
                    let mut ips = answer.ok_or(ConnectError::NoLookUp)?;
                    if !self.test_network {
                        ips = believable(ips);
                    }
                    if ips.is_empty() {
                        return Err(ConnectError::Target(TargetFailure::Unreachable));
                    }
                    Ok(ips)
                }
            }
        };
        tokio::time::timeout(self.timeout, look_up).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// The names of an address.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn resolve_ptr(&self, group: &Group, ip: IpAddr) -> Result<Vec<String>, ConnectError> {
        let look_up = async {
            match self.route(&ip.to_string()) {
                Route::Tor | Route::Auto => {
                    self.tor.resolve_ptr_with_prefs(ip, &self.prefs(group)).await.map_err(|e| plain_tor(&e))
                }
                Route::ExitBridge => self
                    .on_exit_bridge(group, group, 443, &ResolvePtr(ip))
                    .await?
                    .0
                    .ok_or(ConnectError::NoLookUp),
            }
        };
        tokio::time::timeout(self.timeout, look_up).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// It did not work, and is left alone for a while; whoever follows failures hears of it.
    fn note_failure(&self, id: BridgeId) {
        self.bridges().note_failure(id, Now::read());
        let _nobody_follows = self.failures.send(id);
    }

    /// The failures of exit bridges from now on.
    pub fn failures(&self) -> broadcast::Receiver<BridgeId> {
        self.failures.subscribe()
    }

    /// A stream got an answer: its exit bridge works.
    pub fn note_answer(&self, id: BridgeId, circuit: &Circuit) {
        circuit.note_answer();
        self.bridges().note_answer(id, Now::read());
    }

    /// A circuit is gone. An exit bridge that ends each before it gave an answer would have us build one after the
    /// other, and watch for our guard: it is left alone for a while.
    async fn note_gone(&self, group: &Group, id: BridgeId, circuit: &Circuit) {
        let is_news = self.circuits.retire(id, group, circuit).await;
        if is_news && !circuit.is_answered() && self.bridges().note_unanswered(id) {
            self.note_failure(id);
        }
    }

    /// A stream got no answer for so long that its circuit must be dead: no other one uses that. The
    /// exit bridge is not blamed, or a web site that answers nobody could walk its visitors from one
    /// exit bridge to the next; if it is dead indeed, the next circuit will tell.
    pub async fn note_silence(&self, group: &Group, id: BridgeId, circuit: &Circuit) {
        self.circuits.retire(id, group, circuit).await;
    }

    /// A stream broke, with or without an answer before. An exit bridge that ended it unanswered for
    /// reasons of its own is left alone for a while. A circuit that is gone is not asked again, and
    /// neither is the spare one: if the exit bridge died, that only does not know yet. Whether it is gone.
    pub async fn note_break(
        &self,
        group: &Group,
        id: BridgeId,
        circuit: &Circuit,
        error: &std::io::Error,
        answered: bool,
    ) -> bool {
        use tor_proto::Error::EndReceived;
        match error.get_ref().and_then(|e| e.downcast_ref::<tor_proto::Error>()) {
            Some(EndReceived(EndReason::HIBERNATING | EndReason::RESOURCELIMIT)) if !answered => {
                self.note_failure(id);
                false
            }
            // The target's end, or the program's.
            Some(EndReceived(_)) | None => false,
            Some(_) => {
                self.note_gone(group, id, circuit).await;
                true
            }
        }
    }

    /// The line of an exit bridge, and how its circuits are built. Who picked it decides that, for a directory may be
    /// hostile; and what it did to the last ones.
    fn way_to(&self, bridges: &Bridges<Group>, id: BridgeId) -> Option<(BridgeId, BridgeLine, PathKind)> {
        let (line, source) = bridges.line(id)?;
        let path = match source {
            Source::Given if !bridges.is_suspect(id) => self.path,
            Source::Given | Source::Found => PathKind::Vanguards,
        };
        Some((id, line.clone(), path))
    }

    fn prefs(&self, group: &Group) -> StreamPrefs {
        let mut prefs = StreamPrefs::new();
        prefs.set_isolation(group.clone());
        if self.optimistic {
            prefs.optimistic();
        }
        prefs.connect_to_onion_services(arti_client::config::BoolOrAuto::Explicit(true));
        prefs
    }

    /// Asks on a circuit of `group` to the exit bridge of `keeper`; on another circuit when that one is gone,
    /// through another exit bridge when that one is no use.
    async fn on_exit_bridge<Q: Question>(
        &self,
        keeper: &Group,
        group: &Group,
        port: u16,
        question: &Q,
    ) -> Result<(Q::Answer, BridgeId, Circuit), ConnectError> {
        let mut not = Vec::new();
        let (mut last, mut closed) = (None, None);
        for _ in 0..MAX_TRIES {
            let (id, circuit) = match self.circuit(keeper, group, port, &mut not).await {
                Ok(found) => found,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let ordinal = self.bridges().ordinal(id);
            match question.ask(&circuit).await {
                Ok(answer) => {
                    tracing::debug!(circuit = circuit.log_name(), exit_bridge = ordinal, "stream opened");
                    if question.waits() {
                        self.note_answer(id, &circuit);
                    }
                    return Ok((answer, id, circuit));
                }
                Err(error) => match judge(&error) {
                    Verdict::Target(failure) => return Err(ConnectError::Target(failure)),
                    Verdict::ThisBridge(failure) => {
                        tracing::debug!(
                            exit_bridge = ordinal,
                            "the exit bridge declines; another one is asked"
                        );
                        last = Some(ConnectError::Target(failure));
                        not.push(id);
                    }
                    Verdict::Circuit => {
                        tracing::debug!(exit_bridge = ordinal, "the circuit is gone");
                        last = Some(ConnectError::ExitBridges("the circuit was closed".to_owned()));
                        self.note_gone(group, id, &circuit).await;
                        if closed == Some(id) {
                            not.push(id);
                        }
                        closed = Some(id);
                    }
                },
            }
        }
        Err(last.unwrap_or(ConnectError::NoExitBridge))
    }

    /// A circuit of `group` to the exit bridge of `keeper`, or to another one that is not in `not`. When one takes
    /// long or fails, the next one is tried; those that failed are put into `not`.
    async fn circuit(
        &self,
        keeper: &Group,
        group: &Group,
        port: u16,
        not: &mut Vec<BridgeId>,
    ) -> Result<(BridgeId, Circuit), ConnectError> {
        let mut attempts = FuturesUnordered::new();
        let mut started = not.clone();
        let mut last = None;
        loop {
            let next = {
                let mut bridges = self.bridges();
                let id = bridges.choose(keeper, port, &started, Now::read());
                id.and_then(|id| self.way_to(&bridges, id))
            };
            let more = next.is_some();
            if let Some((id, line, path)) = next {
                started.push(id);
                let circuits = Arc::clone(&self.circuits);
                attempts.push(async move { (id, circuits.get(id, &line, path, group).await) });
            }
            if attempts.is_empty() {
                // The caller's time limit ends this.
                let mut asking = self.asking.clone();
                if *asking.borrow_and_update() > 0 && asking.changed().await.is_ok() {
                    started.clone_from(not);
                    continue;
                }
                return Err(last.unwrap_or(ConnectError::NoExitBridge));
            }
            let impatience = async {
                if more && started.len() < MAX_TRIES {
                    tokio::time::sleep(PATIENCE).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                done = attempts.next() => match done {
                    Some((id, Ok(circuit))) => {
                        self.bridges().note_circuit(id, Now::read());
                        // Who kept us waiting for longer than the patience is left alone for a while.
                        for slow in started.iter().take_while(|s| **s != id).filter(|s| !not.contains(s)) {
                            self.note_failure(*slow);
                        }
                        return Ok((id, circuit));
                    }
                    Some((id, Err(error))) => {
                        tracing::info!(exit_bridge = self.bridges().ordinal(id), %error, "no circuit");
                        if matches!(error, CircuitError::ExitBridge(_)) {
                            self.note_failure(id);
                        }
                        not.push(id);
                        last = Some(ConnectError::ExitBridges(error.to_string()));
                    }
                    None => {}
                },
                () = impatience => {}
            }
        }
    }
}

/// What is asked of the last hop of a circuit.
trait Question: Sync {
    /// What it answers.
    type Answer: Send;
    /// Does it wait for the answer?
    fn waits(&self) -> bool {
        true
    }
    /// Asks.
    fn ask(&self, circuit: &Circuit) -> impl Future<Output = tor_circmgr::Result<Self::Answer>> + Send;
}

struct Begin {
    host: String,
    port: u16,
    optimistic: bool,
}

impl Question for Begin {
    type Answer = DataStream;
    fn waits(&self) -> bool {
        !self.optimistic
    }
    async fn ask(&self, circuit: &Circuit) -> tor_circmgr::Result<DataStream> {
        circuit.begin(&self.host, self.port, self.optimistic).await
    }
}

struct Resolve(String);

impl Question for Resolve {
    type Answer = Option<Vec<IpAddr>>;
    async fn ask(&self, circuit: &Circuit) -> tor_circmgr::Result<Self::Answer> {
        circuit.resolve(&self.0).await
    }
}

struct ResolvePtr(IpAddr);

impl Question for ResolvePtr {
    type Answer = Option<Vec<String>>;
    async fn ask(&self, circuit: &Circuit) -> tor_circmgr::Result<Self::Answer> {
        circuit.resolve_ptr(self.0).await
    }
}

/// Most addresses of a name that are heeded.
const MAX_ADDRESSES: usize = 16;

/// What an exit bridge says of a name, without what would lead a program to this machine, its network or nowhere.
fn believable(mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
    ips.retain(|ip| special_use(*ip).is_none());
    ips.truncate(MAX_ADDRESSES);
    ips
}

fn host_text(host: &eebt_proto::Host) -> String {
    match host {
        eebt_proto::Host::Name(name) => name.clone(),
        eebt_proto::Host::Ip(ip) => ip.to_string(),
    }
}

/// What an error on a circuit to an exit bridge means.
enum Verdict {
    /// Any other exit bridge would say the same.
    Target(TargetFailure),
    /// Another exit bridge may do better.
    ThisBridge(TargetFailure),
    /// The circuit is no use any more.
    Circuit,
}

fn judge(error: &tor_circmgr::Error) -> Verdict {
    let tor_circmgr::Error::Protocol { error, .. } = error else { return Verdict::Circuit };
    match error {
        tor_proto::Error::EndReceived(reason) => match *reason {
            EndReason::CONNECTREFUSED => Verdict::Target(TargetFailure::Refused),
            EndReason::RESOLVEFAILED | EndReason::NOROUTE => Verdict::Target(TargetFailure::Unreachable),
            EndReason::TIMEOUT => Verdict::Target(TargetFailure::TimedOut),
            EndReason::CONNRESET | EndReason::DONE => Verdict::Target(TargetFailure::Other),
            EndReason::EXITPOLICY => Verdict::ThisBridge(TargetFailure::Forbidden),
            _ => Verdict::ThisBridge(TargetFailure::Other),
        },
        tor_proto::Error::ResolveError(_) => Verdict::Target(TargetFailure::Unreachable),
        _ => Verdict::Circuit,
    }
}

/// Whether an exit bridge may succeed where plain Tor failed, and what that says about the target.
fn worth_an_exit_bridge(error: &ConnectError) -> Option<Reason> {
    match error {
        ConnectError::Target(TargetFailure::Refused) => Some(Reason::Refused),
        ConnectError::Target(TargetFailure::TimedOut) => Some(Reason::Silent),
        ConnectError::Target(TargetFailure::Other) => Some(Reason::NotTaken),
        _ => None,
    }
}

/// Arti's error on plain Tor, without the target that its text may name.
fn plain_tor(error: &arti_client::Error) -> ConnectError {
    let failure = match error.kind() {
        ErrorKind::RemoteConnectionRefused => TargetFailure::Refused,
        ErrorKind::RemoteHostNotFound
        | ErrorKind::RemoteHostResolutionFailed
        | ErrorKind::RemoteNetworkFailed => TargetFailure::Unreachable,
        ErrorKind::ExitTimeout | ErrorKind::RemoteNetworkTimeout => TargetFailure::TimedOut,
        ErrorKind::ExitPolicyRejected => TargetFailure::Forbidden,
        ErrorKind::RemoteStreamClosed | ErrorKind::RemoteStreamReset | ErrorKind::RemoteStreamError => {
            TargetFailure::Other
        }
        ErrorKind::InvalidStreamTarget | ErrorKind::ForbiddenStreamTarget => return ConnectError::BadTarget,
        kind => return ConnectError::Tor(kind.to_string()),
    };
    ConnectError::Target(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_bridge_that_lies_leads_nobody_to_this_machine_or_its_network() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (v4, v6) = (ip("93.184.215.14"), ip("2606:2800:21f:cb07:6820:80da:af6b:8b2c"));
        for lie in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:192.168.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
        ] {
            assert_eq!(believable(vec![ip(lie), v4, ip(lie), v6]), [v4, v6], "{lie}");
            assert!(believable(vec![ip(lie)]).is_empty(), "{lie}");
        }
        assert_eq!(believable(vec![v4; 1000]).len(), MAX_ADDRESSES);
    }

    /// What the last hop of a circuit to an exit bridge may say instead of CONNECTED, and what is made of it.
    #[test]
    fn each_reason_of_an_exit_bridge_has_its_meaning() {
        use TargetFailure::{Forbidden, Other, Refused, TimedOut, Unreachable};
        let of = |reason| {
            let error = tor_proto::Error::EndReceived(reason);
            match judge(&tor_circmgr::Error::Protocol { action: "", peer: None, error, unique_id: None }) {
                Verdict::Target(failure) => ("the target", failure),
                Verdict::ThisBridge(failure) => ("this exit bridge", failure),
                Verdict::Circuit => panic!("{reason}"),
            }
        };
        for (reason, whose, failure) in [
            (EndReason::CONNECTREFUSED, "the target", Refused),
            (EndReason::RESOLVEFAILED, "the target", Unreachable),
            (EndReason::NOROUTE, "the target", Unreachable),
            (EndReason::TIMEOUT, "the target", TimedOut),
            (EndReason::CONNRESET, "the target", Other),
            (EndReason::DONE, "the target", Other),
            (EndReason::EXITPOLICY, "this exit bridge", Forbidden),
            (EndReason::MISC, "this exit bridge", Other),
            (EndReason::DESTROY, "this exit bridge", Other),
            (EndReason::HIBERNATING, "this exit bridge", Other),
            (EndReason::INTERNAL, "this exit bridge", Other),
            (EndReason::RESOURCELIMIT, "this exit bridge", Other),
            (EndReason::TORPROTOCOL, "this exit bridge", Other),
            (EndReason::NOTDIRECTORY, "this exit bridge", Other),
            (EndReason::from(0), "this exit bridge", Other),
            (EndReason::from(250), "this exit bridge", Other),
        ] {
            assert_eq!(of(reason), (whose, failure), "{reason}");
        }
    }

    #[test]
    fn only_what_the_target_did_to_tor_is_worth_an_exit_bridge() {
        use TargetFailure::{Forbidden, Other, Refused, TimedOut, Unreachable};
        let worth = |failure| worth_an_exit_bridge(&ConnectError::Target(failure));
        assert_eq!(worth(Refused), Some(Reason::Refused));
        assert_eq!(worth(TimedOut), Some(Reason::Silent));
        assert_eq!(worth(Other), Some(Reason::NotTaken));
        assert_eq!(worth(Unreachable), None);
        assert_eq!(worth(Forbidden), None);
        for error in [
            ConnectError::BadTarget,
            ConnectError::NoExitBridge,
            ConnectError::Tor(String::new()),
            ConnectError::Timeout,
        ] {
            assert_eq!(worth_an_exit_bridge(&error), None, "{error}");
        }
    }
}
