//! The way out: resolve, hold every address against the policy, connect to one that passed, copy.
//!
//! A name is resolved once. The addresses that pass the policy are the only ones that are connected
//! to, so a name that answers differently the second time gains nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eebt_proto::{ExitPolicy, Host, Refusal, Surroundings, Target};
use eebt_tor::{PumpError, pump};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::limits::{Limits, Throttle, TokenBucket, TotalLimits, Way};
use crate::resolve::{ResolveError, Resolver};
use crate::status::{Outcome, Status};

/// Head start of each address over the next one (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Most addresses of one name that are tried.
const MAX_ATTEMPTS: usize = 8;

/// How long the last cells of the last stream may take to leave, once it is closed.
const LAST_CELLS: Duration = Duration::from_secs(2);

/// The egress engine of one exit bridge, shared by all its ingresses.
pub struct Egress {
    policy: ExitPolicy,
    around: Arc<dyn Surroundings + Send + Sync>,
    resolver: Resolver,
    source: Option<IpAddr>,
    limits: Limits,
    total_limits: Mutex<TotalLimits>,
    open: Arc<Semaphore>,
    connects: Semaphore,
    throttle: Arc<Throttle>,
    draining: AtomicBool,
    status: Arc<Status>,
}

/// Address families that a stream may use.
#[derive(Clone, Copy, Debug)]
pub struct Families {
    /// IPv4 is fine.
    pub v4: bool,
    /// IPv6 is fine.
    pub v6: bool,
    /// IPv6 first.
    pub prefer_v6: bool,
}

/// Why a stream did not get out. Carries neither name nor address.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The policy says no.
    #[error("refused by the exit policy: {0}")]
    Refused(Refusal),
    /// The name has no address that could be used.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No connection in time.
    #[error("no connection in time")]
    Timeout,
    /// Too many connects are going on.
    #[error("too many connects at once")]
    Busy,
    /// No address could be connected to; this is what the last one said.
    #[error("cannot connect: {}", .0.kind())]
    Connect(io::Error),
}

impl EgressError {
    /// Does this count as a failed connect? What a port scan leaves behind.
    pub(crate) fn is_failed_connect(&self) -> bool {
        !matches!(self, Self::Resolve(ResolveError::Transient) | Self::Busy)
    }

    /// Would trying again help?
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout | Self::Busy | Self::Resolve(ResolveError::Transient))
    }

    /// How it is counted.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Refused,
            Self::Busy => Outcome::OverLimit,
            _ => Outcome::Failed,
        }
    }
}

impl Egress {
    /// An engine that lets out what `policy` allows, from the local address `source` if given.
    pub fn new(
        policy: ExitPolicy,
        around: Arc<dyn Surroundings + Send + Sync>,
        resolver: Resolver,
        source: Option<IpAddr>,
        limits: Limits,
        throttle: Arc<Throttle>,
        status: Arc<Status>,
    ) -> Self {
        Self {
            policy,
            around,
            resolver,
            source,
            open: Arc::new(Semaphore::new(limits.streams as usize)),
            connects: Semaphore::new(limits.connects as usize),
            throttle,
            total_limits: Mutex::new(TotalLimits::new(&limits, Instant::now())),
            limits,
            draining: AtomicBool::new(false),
            status,
        }
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What all circuits have used up.
    pub(crate) fn total_limits(&self) -> MutexGuard<'_, TotalLimits> {
        self.total_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// One permit for each stream that may be open.
    pub(crate) fn open_streams(&self) -> Arc<Semaphore> {
        Arc::clone(&self.open)
    }

    /// Takes no new stream from now on, and waits for the open ones, no longer than `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let idle = self.open.available_permits() == self.limits.streams as usize;
        let all_closed = self.open.acquire_many(self.limits.streams);
        if timeout(deadline, all_closed).await.is_ok() && !idle {
            // Their last cells may still wait for room in a congestion window.
            tokio::time::sleep(LAST_CELLS.min(deadline.saturating_sub(start.elapsed()))).await;
        }
    }

    /// Is it past taking new streams?
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Connects to `target`, if the policy lets it.
    ///
    /// # Errors
    /// See [`EgressError`].
    pub async fn connect(&self, target: &Target, families: Families) -> Result<TcpStream, EgressError> {
        self.policy.check_target(target, &*self.around).map_err(EgressError::Refused)?;
        let _place = self.connects.try_acquire().map_err(|_| EgressError::Busy)?;
        let attempt = async {
            let ips = match &target.host {
                Host::Ip(ip) => vec![*ip],
                Host::Name(name) => self.resolver.addresses(name).await?,
            };
            self.connect_any(self.usable(&ips, target.port, families)?).await
        };
        timeout(self.limits.connect_timeout, attempt).await.unwrap_or(Err(EgressError::Timeout))
    }

    /// The addresses that the policy and the client allow, in the order in which to try them.
    fn usable(&self, ips: &[IpAddr], port: u16, families: Families) -> Result<Vec<SocketAddr>, EgressError> {
        let mut refusal = None;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for ip in ips {
            let addr = SocketAddr::new(ip.to_canonical(), port);
            let wanted = if addr.is_ipv4() { families.v4 } else { families.v6 };
            let possible = self.source.is_none_or(|source| source.is_ipv4() == addr.is_ipv4());
            match self.policy.check(addr, &*self.around) {
                Err(why) => refusal = Some(why),
                Ok(()) if !(wanted && possible) => {}
                Ok(()) if addr.is_ipv6() == families.prefer_v6 => first.push(addr),
                Ok(()) => second.push(addr),
            }
        }
        let mut ordered = Vec::with_capacity(first.len() + second.len());
        let (mut first, mut second) = (first.into_iter(), second.into_iter());
        loop {
            let before = ordered.len();
            ordered.extend(first.next());
            ordered.extend(second.next());
            if ordered.len() == before {
                break;
            }
        }
        ordered.truncate(MAX_ATTEMPTS);
        match (ordered.is_empty(), refusal) {
            (false, _) => Ok(ordered),
            (true, Some(why)) => Err(EgressError::Refused(why)),
            (true, None) => Err(ResolveError::NotFound.into()),
        }
    }

    /// Happy eyeballs (RFC 8305): each address some time after the one before it, or at once when
    /// that one failed; the first to connect wins.
    async fn connect_any(&self, addrs: Vec<SocketAddr>) -> Result<TcpStream, EgressError> {
        let mut waiting = addrs.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        loop {
            match waiting.next() {
                Some(addr) => attempts.push(connect_from(self.source, addr)),
                None if attempts.is_empty() => return Err(EgressError::Connect(last_error)),
                None => {}
            }
            let next = async {
                if waiting.len() == 0 {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ATTEMPT_DELAY).await;
            };
            tokio::select! {
                done = attempts.next() => match done {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => last_error = error,
                    None => {}
                },
                () = next => {}
            }
        }
    }

    /// Is this target open only because a directory tests exit bridges there?
    pub(crate) fn is_test(&self, target: &Target) -> bool {
        self.policy.is_test(target, &*self.around)
    }

    /// Is this host open, whatever its addresses?
    ///
    /// # Errors
    /// [`EgressError::Refused`].
    pub(crate) fn lets_out(&self, host: &Host) -> Result<(), EgressError> {
        self.policy.check_host(host).map_err(EgressError::Refused)
    }

    /// Addresses of a name, for RESOLVE: those that a stream could be opened to.
    ///
    /// # Errors
    /// [`EgressError::Refused`] when all of them are closed, [`EgressError::Resolve`].
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, EgressError> {
        let mut ips = self.resolver.addresses(name).await?;
        let mut refusal = None;
        ips.retain(|ip| self.policy.check_ip(*ip, &*self.around).map_err(|why| refusal = Some(why)).is_ok());
        match refusal {
            Some(why) if ips.is_empty() => Err(EgressError::Refused(why)),
            _ => Ok(ips),
        }
    }

    /// Name of an address, for RESOLVE: only of one that a stream could be opened to.
    ///
    /// # Errors
    /// As [`Egress::addresses`].
    pub(crate) async fn name_of(&self, ip: IpAddr) -> Result<String, EgressError> {
        self.policy.check_ip(ip, &*self.around).map_err(EgressError::Refused)?;
        Ok(self.resolver.name_of(ip).await?)
    }

    /// Copies both ways until one side is done, nothing came for the idle time, or an error. Tor
    /// has no half-closed streams: the end of either direction is the end of the stream.
    pub async fn copy(
        &self,
        tor: impl AsyncRead + AsyncWrite + Unpin,
        tcp: TcpStream,
        budget: &Mutex<TokenBucket>,
    ) {
        let (mut tor_read, mut tor_write) = tokio::io::split(tor);
        let (mut tcp_read, mut tcp_write) = tcp.into_split();
        let idle = Idle::new(self.limits.idle_timeout);
        let spend = |way: Way, n: usize| {
            idle.touch();
            #[allow(clippy::cast_precision_loss)]
            let (n, now) = (n as f64, Instant::now());
            let of_circuit = budget.lock().unwrap_or_else(PoisonError::into_inner).spend(n, now);
            of_circuit.max(self.throttle.spend(way, n, now))
        };
        let up = pump(&mut tor_read, &mut tcp_write, |n| {
            self.status.add_up(n as u64);
            spend(Way::Up, n)
        });
        let down = pump(&mut tcp_read, &mut tor_write, |n| {
            self.status.add_down(n as u64);
            spend(Way::Down, n)
        });
        // When the origin takes no more, what it said before that still has to go down.
        let up = async {
            if let Err(PumpError::Writer(_)) = up.await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = up => {}
            _ = down => {}
            () = idle.over() => {}
        }
    }
}

/// Connects from a given local address, with small writes sent at once.
async fn connect_from(source: Option<IpAddr>, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// When something last moved.
struct Idle {
    start: Instant,
    last: AtomicU64,
    limit: Duration,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), limit }
    }

    fn touch(&self) {
        // Five hundred million years of milliseconds fit.
        #[allow(clippy::cast_possible_truncation)]
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Ends when nothing moved for the limit.
    async fn over(&self) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let quiet = self.start.elapsed().saturating_sub(last);
            if quiet >= self.limit {
                return;
            }
            tokio::time::sleep(self.limit - quiet).await;
        }
    }
}
