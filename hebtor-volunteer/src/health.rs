//! Is this home's address on a list by which sites refuse visitors? Asked when it begins to serve and each day after, directly and
//! through Tor, so that neither the line's resolver nor a Tor exit alone can say so.
//!
//! A process of its own does it (`hebtor-volunteer check-address`), as with the exit bridge: what Tor takes is gone with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arti_client::TorClient;
use eebt_bridge::resolve::{ResolveError, Resolver};
use eebt_tor::{FetchError, Https, TorRuntime, fetch};
use hyper::Uri;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::machine;

/// How long one question may take, and the way into Tor.
const ASK: Duration = Duration::from_secs(30);
const BOOTSTRAP: Duration = Duration::from_secs(120);

/// Longest page that is read, in bytes.
const MAX_PAGE: usize = 1 << 20;

/// A DNS block list (RFC 5782).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockList {
    /// Its zone.
    pub zone: String,
    /// The last byte of answers, 127.0.0.x, that speak against an address: from, and to. Lists have others, which say no
    /// more than that it is a home's.
    pub from: u8,
    /// See `from`.
    pub to: u8,
}

impl BlockList {
    /// Well-known ones.
    pub fn usual() -> Vec<Self> {
        let list = |zone: &str, from, to| Self { zone: zone.into(), from, to };
        vec![
            // Sources of abuse; 10 and 11 are homes.
            list("zen.spamhaus.org", 2, 9),
            list("dnsbl.dronebl.org", 2, 255),
        ]
    }

    /// The name to ask for.
    fn name(&self, ip: Ipv4Addr) -> String {
        let [a, b, c, d] = ip.octets();
        format!("{d}.{c}.{b}.{a}.{}", self.zone)
    }

    /// What an answer says.
    fn says(&self, answer: &[IpAddr]) -> Verdict {
        let codes: Vec<u8> = answer
            .iter()
            .filter_map(|ip| match ip {
                IpAddr::V4(ip) if ip.octets()[..3] == [127, 0, 0] => Some(ip.octets()[3]),
                _ => None,
            })
            .collect();
        match codes.iter().any(|code| (self.from..=self.to).contains(code)) {
            true => Verdict::Bad,
            // Answers outside of 127.0.0.0/24 say that it was not asked well, or come from somebody in between.
            false if codes.len() == answer.len() => Verdict::Good,
            false => Verdict::Unclear,
        }
    }
}

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    /// The address that sites see.
    pub address: IpAddr,
    /// Block lists.
    pub block_lists: Vec<BlockList>,
    /// Pages of sites that turn bad addresses away.
    pub canaries: Vec<String>,
    /// Local address of connections.
    pub source: Option<IpAddr>,
    /// Name servers; the system's when empty.
    pub resolver: Vec<SocketAddr>,
    /// Folder for its own consensus.
    pub state_dir: PathBuf,
    /// Another Tor network.
    pub network: Option<PathBuf>,
    /// Arti settings.
    pub tor: toml::Table,
}

/// What one of them says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing against it.
    Good,
    /// Listed, or turned away.
    Bad,
    /// No answer that could be used.
    Unclear,
}

/// How it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From this home.
    Direct,
    /// Through a Tor exit.
    Tor,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The zone, or the page.
    pub who: String,
    /// Is it a page of a site?
    pub canary: bool,
    /// How it was asked. A canary that is asked through Tor tells nothing of this address, but whether it turns Tor away.
    pub way: Way,
    /// What it says.
    pub verdict: Verdict,
}

/// Do these answers say that the address is of no use now? Any list does, and half of the canaries.
pub fn is_listed(answers: &[Answer]) -> bool {
    let of = |canary, way: Option<Way>| {
        answers.iter().filter(move |a| a.canary == canary && way.is_none_or(|way| a.way == way))
    };
    let bad = of(true, Some(Way::Direct)).filter(|a| a.verdict == Verdict::Bad).count();
    let all = of(true, Some(Way::Direct)).filter(|a| a.verdict != Verdict::Unclear).count();
    of(false, None).any(|answer| answer.verdict == Verdict::Bad) || bad > 0 && bad * 2 >= all
}

/// The process: a question on standard input, the answers on standard output.
pub fn run() -> ExitCode {
    machine::make_room();
    let asked = (|| {
        let question: Question = serde_json::from_reader(std::io::stdin().lock())?;
        let (tokio, runtime) = eebt_tor::create_runtime(1)?;
        let answers = tokio.block_on(ask(question, runtime))?;
        serde_json::to_writer(std::io::stdout().lock(), &answers)?;
        anyhow::Ok(())
    })();
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!("the address was not checked: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(question: Question, runtime: TorRuntime) -> anyhow::Result<Vec<Answer>> {
    let resolver = Resolver::new(&question.resolver)?;
    let https = Https::new();
    let tor = match timeout(BOOTSTRAP, bootstrap(&question, runtime)).await {
        Ok(Ok(tor)) => Some(tor),
        // What is asked directly is worth something by itself.
        _ => None,
    };
    let mut answers = Vec::new();
    for list in &question.block_lists {
        // Lists of IPv6 addresses go by networks that nobody knows here.
        let IpAddr::V4(ip) = question.address else { continue };
        let names = [list.name(Ipv4Addr::LOCALHOST), list.name(Ipv4Addr::new(127, 0, 0, 2)), list.name(ip)];
        let direct = looked_up(list, names.each_ref().map(|name| resolver.addresses(name))).await;
        answers.push(Answer { who: list.zone.clone(), canary: false, way: Way::Direct, verdict: direct });
        if let Some(tor) = &tor {
            let verdict = looked_up(list, names.each_ref().map(|name| resolve(tor, name))).await;
            answers.push(Answer { who: list.zone.clone(), canary: false, way: Way::Tor, verdict });
        }
    }
    for page in &question.canaries {
        let visit = async |way| match way {
            Way::Direct => {
                let open = async |host: &str, port| direct(&resolver, question.source, host, port).await;
                visit(page, https.as_ref().ok(), open).await
            }
            Way::Tor => match &tor {
                Some(tor) => {
                    visit(page, https.as_ref().ok(), async |host: &str, port| through(tor, host, port).await)
                        .await
                }
                None => Verdict::Unclear,
            },
        };
        for way in [Way::Direct, Way::Tor] {
            let verdict = timeout(ASK, visit(way)).await.unwrap_or(Verdict::Unclear);
            answers.push(Answer { who: page.clone(), canary: true, way, verdict });
        }
    }
    Ok(answers)
}

async fn bootstrap(question: &Question, runtime: TorRuntime) -> anyhow::Result<Arc<TorClient<TorRuntime>>> {
    let config =
        eebt_tor::tor_client_config(&question.state_dir, question.network.as_deref(), &question.tor)?;
    let tor = TorClient::with_runtime(runtime).config(config).create_unbootstrapped_async().await?;
    tor.bootstrap().await?;
    Ok(tor)
}

/// What a list says, where it does not say the same of everybody: 127.0.0.1 is on none, and 127.0.0.2 on each (RFC 5782,
/// section 5). It is asked for these and then for the address.
async fn looked_up(
    list: &BlockList,
    [none, all, own]: [impl Future<Output = Result<Vec<IpAddr>, ResolveError>>; 3],
) -> Verdict {
    let asked = async { (none.await, all.await, own.await) };
    match timeout(ASK, asked).await {
        Ok((Err(ResolveError::NotFound), Ok(_), Err(ResolveError::NotFound))) => Verdict::Good,
        Ok((Err(ResolveError::NotFound), Ok(_), Ok(answer))) => list.says(&answer),
        _ => Verdict::Unclear,
    }
}

async fn resolve(tor: &TorClient<TorRuntime>, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    use tor_error::{ErrorKind, HasKind as _};
    tor.resolve(name).await.map_err(|error| match error.kind() {
        ErrorKind::RemoteHostNotFound => ResolveError::NotFound,
        _ => ResolveError::Transient,
    })
}

async fn direct(
    resolver: &Resolver,
    source: Option<IpAddr>,
    host: &str,
    port: u16,
) -> anyhow::Result<TcpStream> {
    let addresses = match host.parse() {
        Ok(ip) => vec![ip],
        Err(_) => resolver.addresses(host).await?,
    };
    let fits = |ip: &&IpAddr| source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
    let ip = addresses.iter().find(fits).ok_or(ResolveError::NotFound)?;
    let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    Ok(socket.connect(SocketAddr::new(*ip, port)).await?)
}

async fn through(
    tor: &TorClient<TorRuntime>,
    host: &str,
    port: u16,
) -> anyhow::Result<arti_client::DataStream> {
    Ok(tor.connect((host, port)).await?)
}

/// Fetches a page. Only an answer that turns the visitor away is a bad one; a site that is down says nothing.
async fn visit<S>(
    page: &str,
    https: Option<&Https>,
    open: impl AsyncFn(&str, u16) -> anyhow::Result<S>,
) -> Verdict
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(uri) = page.parse::<Uri>() else { return Verdict::Unclear };
    let Some(host) = uri.host() else { return Verdict::Unclear };
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let Ok(stream) = open(host, port).await else { return Verdict::Unclear };
    let fetched = match (is_tls, https) {
        (false, _) => fetch(stream, &uri, MAX_PAGE).await,
        (true, Some(https)) => match https.connect(host, stream).await {
            Ok(stream) => fetch(stream, &uri, MAX_PAGE).await,
            Err(_) => return Verdict::Unclear,
        },
        (true, None) => return Verdict::Unclear,
    };
    match fetched {
        Ok(_) => Verdict::Good,
        Err(FetchError::Status(status)) if [401, 403, 429, 451].contains(&status.as_u16()) => Verdict::Bad,
        Err(FetchError::Status(status)) if !status.is_server_error() => Verdict::Good,
        // Longer than is read.
        Err(FetchError::Body(_)) => Verdict::Good,
        Err(_) => Verdict::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_is_meant() {
        let list = BlockList { zone: "bl.example".into(), from: 2, to: 9 };
        assert_eq!(list.name("198.51.100.7".parse().unwrap()), "7.100.51.198.bl.example");
        let says =
            |answer: &[&str]| list.says(&answer.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(says(&["127.0.0.4"]), Verdict::Bad);
        assert_eq!(says(&["127.0.0.10"]), Verdict::Good, "a home's");
        assert_eq!(says(&["127.0.0.10", "127.0.0.2"]), Verdict::Bad);
        assert_eq!(says(&["127.255.255.254"]), Verdict::Unclear, "asked by a resolver that it does not like");
        assert_eq!(says(&["198.51.100.99"]), Verdict::Unclear, "a resolver that answers everything");
    }

    #[tokio::test]
    async fn a_list_that_lists_everybody_or_nobody_says_nothing() {
        let list = BlockList { zone: "bl.example".into(), from: 2, to: 9 };
        let listed = || Ok(vec!["127.0.0.2".parse().unwrap()]);
        let (not, broken) = (|| Err(ResolveError::NotFound), || Err(ResolveError::Transient));
        for (none, all, own, verdict) in [
            (not(), listed(), listed(), Verdict::Bad),
            (not(), listed(), not(), Verdict::Good),
            (listed(), listed(), listed(), Verdict::Unclear),
            (not(), not(), not(), Verdict::Unclear),
            (not(), listed(), broken(), Verdict::Unclear),
            (broken(), listed(), not(), Verdict::Unclear),
        ] {
            let told = format!("{none:?} {all:?} {own:?}");
            let asked = [none, all, own].map(|answer| async { answer });
            assert_eq!(looked_up(&list, asked).await, verdict, "{told}");
        }
    }

    #[test]
    fn any_list_and_half_of_the_canaries_are_enough() {
        let answer = |canary, way, verdict| Answer { who: "x".into(), canary, way, verdict };
        let (good, bad, unclear) = (Verdict::Good, Verdict::Bad, Verdict::Unclear);
        assert!(!is_listed(&[]));
        assert!(!is_listed(&[answer(false, Way::Direct, good), answer(false, Way::Tor, unclear)]));
        assert!(is_listed(&[answer(false, Way::Direct, good), answer(false, Way::Tor, bad)]));
        let canary = |verdict| answer(true, Way::Direct, verdict);
        assert!(!is_listed(&[canary(bad), canary(good), canary(good)]));
        assert!(is_listed(&[canary(bad), canary(good), canary(unclear)]));
        assert!(
            !is_listed(&[canary(good), answer(true, Way::Tor, bad)]),
            "that Tor is turned away is no news"
        );
    }
}
