//! One stream, from its request to its end: the same for every ingress.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eebt_proto::{Host, Target, TargetError};
use futures::{Stream, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tor_cell::relaycell::msg::{
    Begin, BeginFlags, Connected, End, EndReason, Resolve, Resolved, ResolvedVal,
};
use tor_hsservice::StreamRequest;
use tor_proto::client::stream::DataStream;
use tor_proto::stream::{IncomingStream, IncomingStreamRequest};

use crate::egress::{Egress, EgressError, Families};
use crate::ingress::directory::OwnDirectory;
use crate::limits::{CircuitLimits, OverLimit, TokenBucket};
use crate::status::Outcome;

/// Time to live that every answer carries: the real one would tell when a name was last looked up.
const TTL: u32 = 60;

/// One circuit and what it has used up.
struct Circuit {
    directory: Option<Arc<OwnDirectory>>,
    limits: Mutex<CircuitLimits>,
    bytes: Arc<Mutex<TokenBucket>>,
    open: Arc<Semaphore>,
}

impl Circuit {
    /// A circuit that has asked for nothing yet.
    fn new(egress: &Egress, directory: Option<Arc<OwnDirectory>>) -> Self {
        let (limits, now) = (egress.limits(), Instant::now());
        Self {
            directory,
            limits: Mutex::new(CircuitLimits::new(limits, now)),
            bytes: Arc::new(Mutex::new(TokenBucket::new(limits.bytes, now))),
            open: Arc::new(Semaphore::new(limits.streams_per_circuit as usize)),
        }
    }

    /// Room for one more stream, given back when the permits are dropped.
    fn admit(&self, egress: &Egress, target: &Target) -> Result<[OwnedSemaphorePermit; 2], OverLimit> {
        let one = Arc::clone(&self.open).try_acquire_owned().map_err(|_| OverLimit::Streams)?;
        let all = egress.open_streams().try_acquire_owned().map_err(|_| OverLimit::Total)?;
        self.limits().admit(target, &mut egress.total_limits(), Instant::now())?;
        Ok([one, all])
    }

    fn note_failed_connect(&self, egress: &Egress) {
        self.limits().note_failed_connect(&mut egress.total_limits(), Instant::now());
    }

    fn limits(&self) -> MutexGuard<'_, CircuitLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request for a stream, as an ingress brings it.
pub(crate) enum Incoming {
    /// On a circuit that ends here.
    Circuit(IncomingStream),
    /// On a rendezvous circuit of our onion service.
    Onion(StreamRequest),
}

impl Incoming {
    fn request(&self) -> &IncomingStreamRequest {
        match self {
            Self::Circuit(stream) => stream.request(),
            Self::Onion(stream) => stream.request(),
        }
    }

    async fn accept(self, connected: Connected) -> Result<DataStream, CircuitGone> {
        match self {
            Self::Circuit(stream) => stream.accept_data(connected).await.map_err(|_| CircuitGone),
            Self::Onion(stream) => stream.accept(connected).await.map_err(|_| CircuitGone),
        }
    }

    async fn reject(self, reason: EndReason) {
        let end = match reason {
            // Without an address, a client with C tor would take it for a refusal of everything, and never come back. The
            // real one may be of a network that is nobody's business; at this one C tor just closes the stream.
            EndReason::EXITPOLICY => End::new_exitpolicy(Ipv4Addr::UNSPECIFIED.into(), TTL),
            other => End::new_with_reason(other),
        };
        match self {
            Self::Circuit(stream) => drop(stream.reject(end).await),
            Self::Onion(stream) => drop(stream.reject(end).await),
        }
    }

    async fn resolve(self, answer: Resolved) {
        match self {
            Self::Circuit(stream) => drop(stream.resolve(answer).await),
            // An onion service takes BEGIN only (rend-spec); Arti lets nothing else through.
            Self::Onion(stream) => drop(stream.reject(End::new_with_reason(EndReason::NOTDIRECTORY)).await),
        }
    }
}

/// The circuit closed before its stream was open.
struct CircuitGone;

/// Serves the streams of one circuit, each in a task of its own. Without a directory, BEGIN_DIR is refused.
pub(crate) async fn serve_circuit(
    mut streams: impl Stream<Item = Incoming> + Unpin,
    egress: Arc<Egress>,
    directory: Option<Arc<OwnDirectory>>,
) {
    let circuit = Arc::new(Circuit::new(&egress, directory));
    while let Some(stream) = streams.next().await {
        tokio::spawn(serve_stream(stream, Arc::clone(&circuit), Arc::clone(&egress)));
    }
}

/// Serves one request until its stream is done. What went wrong is told to the client and counted;
/// it is logged without target.
async fn serve_stream(stream: Incoming, circuit: Arc<Circuit>, egress: Arc<Egress>) {
    // Boxed: its memory is gone once there is something to copy.
    if let Some(open) = Box::pin(answer(stream, &circuit, &egress)).await {
        egress.copy(open.tor, open.tcp, &circuit.bytes).await;
    }
}

/// A stream with both its ends.
struct Open {
    tor: DataStream,
    tcp: TcpStream,
    _room: [OwnedSemaphorePermit; 2],
}

/// Answers a request. Returns a stream if it was for one, and there is one.
async fn answer(stream: Incoming, circuit: &Circuit, egress: &Egress) -> Option<Open> {
    match stream.request() {
        IncomingStreamRequest::Begin(begin) => {
            let begin = begin.clone();
            return connect(stream, &begin, circuit, egress).await;
        }
        IncomingStreamRequest::Resolve(resolve) => {
            let answering = resolve_answer(resolve, circuit, egress);
            let answer = tokio::time::timeout(egress.limits().connect_timeout, answering).await;
            let answer = answer.unwrap_or_else(|_| Resolved::new_err(true, TTL));
            stream.resolve(answer).await;
        }
        IncomingStreamRequest::BeginDir(_) => match &circuit.directory {
            Some(directory) => begin_dir(stream, directory, circuit, egress).await,
            None => stream.reject(EndReason::NOTDIRECTORY).await,
        },
        // Not let in by the ingress; an answer all the same.
        _ => stream.reject(EndReason::NOTDIRECTORY).await,
    }
    None
}

/// A stream to ourselves, held to the same bounds as one to anywhere else.
async fn begin_dir(stream: Incoming, directory: &OwnDirectory, circuit: &Circuit, egress: &Egress) {
    let _room = match circuit.admit(egress, directory.target()) {
        Ok(room) => room,
        Err(over) => {
            egress.status().count(Outcome::OverLimit);
            return stream.reject(end_of_over_limit(over)).await;
        }
    };
    if let Ok(stream) = stream.accept(Connected::new_empty()).await {
        directory.serve(stream, egress.limits().connect_timeout).await;
    }
}

async fn connect(stream: Incoming, begin: &Begin, circuit: &Circuit, egress: &Egress) -> Option<Open> {
    let (room, tcp) = match admit_and_connect(begin, circuit, egress).await {
        Ok(connected) => connected,
        Err(reason) => {
            stream.reject(reason).await;
            return None;
        }
    };
    let peer = tcp.peer_addr().map(|a| a.ip());
    let connected = peer.map_or_else(|_| Connected::new_empty(), |ip| Connected::new_with_addr(ip, TTL));
    match stream.accept(connected).await {
        Ok(tor) => {
            egress.status().count(Outcome::Served);
            Some(Open { tor, tcp, _room: room })
        }
        Err(CircuitGone) => {
            tracing::debug!("the circuit went away");
            None
        }
    }
}

/// Opens the connection that a client wants, or says what to tell it.
async fn admit_and_connect(
    begin: &Begin,
    circuit: &Circuit,
    egress: &Egress,
) -> Result<([OwnedSemaphorePermit; 2], TcpStream), EndReason> {
    if egress.is_draining() {
        return Err(EndReason::HIBERNATING);
    }
    let target = target(begin.addr(), begin.port()).map_err(|error| {
        egress.status().count(Outcome::Refused);
        end_of_target_error(error)
    })?;
    let room = circuit.admit(egress, &target).map_err(|over| {
        tracing::debug!(%over, "stream refused");
        egress.status().count(Outcome::OverLimit);
        end_of_over_limit(over)
    })?;
    if egress.is_test(&target) && !circuit.limits().take_test() {
        egress.status().count(Outcome::Refused);
        return Err(EndReason::EXITPOLICY);
    }
    let tcp = egress.connect(&target, families(begin.flags())).await.map_err(|error| {
        tracing::debug!(%error, "stream refused");
        if error.is_failed_connect() {
            circuit.note_failed_connect(egress);
        }
        egress.status().count(error.outcome());
        end_of_egress_error(&error)
    })?;
    Ok((room, tcp))
}

/// The answer to a RESOLVE. A name that only has addresses that are closed to streams does not resolve.
async fn resolve_answer(resolve: &Resolve, circuit: &Circuit, egress: &Egress) -> Resolved {
    let not_found = || Resolved::new_err(false, TTL);
    if egress.is_draining() {
        return Resolved::new_err(true, TTL);
    }
    let Ok(query) = std::str::from_utf8(resolve.query()) else { return not_found() };
    let found = if let Some(ip) = reverse_query(query) {
        let Ok(target) = Target::new(&ip.to_string(), 443) else { return not_found() };
        let Ok(_permits) = circuit.admit(egress, &target) else { return Resolved::new_err(true, TTL) };
        egress.name_of(ip).await.map(|name| vec![ResolvedVal::Hostname(name.into())])
    } else {
        // Any open port will do: names are resolved for no port.
        let Ok(target) = Target::new(query, 443) else { return not_found() };
        let Ok(_permits) = circuit.admit(egress, &target) else { return Resolved::new_err(true, TTL) };
        if egress.lets_out(&target.host).is_err() {
            return not_found();
        }
        match target.host {
            Host::Ip(ip) => Ok(vec![ResolvedVal::Ip(ip)]),
            Host::Name(name) => {
                egress.addresses(&name).await.map(|ips| ips.into_iter().map(ResolvedVal::Ip).collect())
            }
        }
    };
    match found {
        Ok(values) => {
            let mut resolved = Resolved::new_empty();
            // As many as surely fit in one cell.
            values.into_iter().take(8).for_each(|value| resolved.add_answer(value, TTL));
            resolved
        }
        Err(error) => {
            if error.is_failed_connect() {
                circuit.note_failed_connect(egress);
            }
            Resolved::new_err(error.is_transient(), TTL)
        }
    }
}

/// The address in a query for `…in-addr.arpa` or `…ip6.arpa`.
fn reverse_query(query: &str) -> Option<IpAddr> {
    let query = query.to_ascii_lowercase();
    if let Some(v4) = query.strip_suffix(".in-addr.arpa") {
        let mut octets: Vec<&str> = v4.split('.').collect();
        octets.reverse();
        return octets.join(".").parse::<std::net::Ipv4Addr>().ok().map(IpAddr::from);
    }
    let nibbles: Vec<&str> = query.strip_suffix(".ip6.arpa")?.split('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|n| n.len() != 1) {
        return None;
    }
    let hex: String = nibbles.into_iter().rev().collect();
    u128::from_str_radix(&hex, 16).ok().map(|bits| IpAddr::from(std::net::Ipv6Addr::from(bits)))
}

fn target(addr: &[u8], port: u16) -> Result<Target, TargetError> {
    Target::new(std::str::from_utf8(addr).map_err(|_| TargetError::Syntax)?, port)
}

/// What the client lets us use (tor-spec, "Opening streams").
fn families(flags: BeginFlags) -> Families {
    Families {
        v4: !flags.contains(BeginFlags::IPV4_NOT_OKAY),
        v6: flags.contains(BeginFlags::IPV6_OKAY),
        prefer_v6: flags.contains(BeginFlags::IPV6_PREFERRED),
    }
}

/// The reason that C tor gives for the same thing.
fn end_of_target_error(error: TargetError) -> EndReason {
    match error {
        TargetError::Port => EndReason::TORPROTOCOL,
        TargetError::Syntax => EndReason::RESOLVEFAILED,
        TargetError::LocalName => EndReason::EXITPOLICY,
    }
}

/// Of one circuit as C tor's exits do, for a C tor that hears RESOURCELIMIT gives an exit no more streams at all.
fn end_of_over_limit(over: OverLimit) -> EndReason {
    match over {
        OverLimit::Streams | OverLimit::NewStreams | OverLimit::Targets | OverLimit::FailedConnects => {
            EndReason::MISC
        }
        OverLimit::Total => EndReason::RESOURCELIMIT,
    }
}

fn end_of_egress_error(error: &EgressError) -> EndReason {
    use std::io::ErrorKind as K;
    match error {
        EgressError::Refused(_) => EndReason::EXITPOLICY,
        EgressError::Resolve(_) => EndReason::RESOLVEFAILED,
        EgressError::Timeout => EndReason::TIMEOUT,
        EgressError::Busy => EndReason::RESOURCELIMIT,
        EgressError::Connect(e) => match e.kind() {
            K::ConnectionRefused => EndReason::CONNECTREFUSED,
            K::ConnectionReset | K::ConnectionAborted => EndReason::CONNRESET,
            K::TimedOut => EndReason::TIMEOUT,
            K::HostUnreachable | K::NetworkUnreachable | K::AddrNotAvailable => EndReason::NOROUTE,
            _ => EndReason::MISC,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_queries_are_read() {
        assert_eq!(reverse_query("4.3.2.1.in-addr.arpa"), Some("1.2.3.4".parse().unwrap()));
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.ARPA";
        assert_eq!(reverse_query(v6), Some("2001:db8::1".parse().unwrap()));
        for other in
            ["example.com", "3.2.1.in-addr.arpa", "a.b.c.d.in-addr.arpa", "1.0.ip6.arpa", ".ip6.arpa"]
        {
            assert_eq!(reverse_query(other), None, "{other}");
        }
    }
}
