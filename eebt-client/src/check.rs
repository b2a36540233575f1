//! `eebt-client check`: does this exit bridge work, and are these pages open to it?
//!
//! For a person with a bridge line that may be dead, and for programs that keep exit bridges: they write bridge lines to
//! it, one a line, and read what became of each.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use arti_client::TorClient;
use eebt_proto::{BridgeLine, Reach};
use eebt_tor::{Circuit, CircuitError, PathKind, Paths, TorRuntime};
use hyper::Uri;
use serde::{Serialize, Serializer};
use tokio::time::timeout;

use crate::blocked::Answer;
use crate::{Config, RunError, probe};
use eebt_tor::Https;

/// How many paths are tried to one exit bridge, and how long all of them may take.
const MAX_PATHS: usize = 3;
const BUILD_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a stream may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A page that is visited: the first one of an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    tls: bool,
    host: String,
    port: u16,
}

impl FromStr for Page {
    type Err = String;

    /// An `http:` or `https:` URL without a path.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a URL such as https://example.com/");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(format!("{text:?} has a path; only first pages are visited"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if host.is_empty() || port == 0 {
            return Err(wrong());
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        if self.port == usual {
            write!(f, "{scheme}://{host}/")
        } else {
            write!(f, "{scheme}://{host}:{}/", self.port)
        }
    }
}

impl Serialize for Page {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What became of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visited {
    /// A page came.
    Open,
    /// The origin turned the exit bridge away.
    Blocked,
    /// No answer, for whatever reason.
    NoAnswer,
}

/// What is known of one exit bridge.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Which bridge line: they are counted from 1.
    pub line: usize,
    /// A circuit to it could be built.
    pub serves: bool,
    /// How long that took.
    pub seconds: f64,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Not its fault: there is no way into the Tor network from here, so nothing is known of it.
    pub no_tor: bool,
    /// The pages, in the order in which they were given.
    pub visits: Vec<Visit>,
}

impl Checked {
    /// The line is none.
    pub fn unusable(line: usize, error: &impl fmt::Display) -> Self {
        let error = Some(error.to_string());
        Self { line, serves: false, seconds: 0.0, error, no_tor: false, visits: Vec::new() }
    }
}

/// One page.
#[derive(Debug, Serialize)]
pub struct Visit {
    /// Which.
    pub page: Page,
    /// What became of it.
    pub result: Visited,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            None => write!(f, "line {}: works, after {:.1} s", self.line, self.seconds)?,
            Some(error) => write!(f, "line {}: DOES NOT WORK: {error}", self.line)?,
        }
        for Visit { page, result } in &self.visits {
            let result = match result {
                Visited::Open => "open",
                Visited::Blocked => "TURNS IT AWAY",
                Visited::NoAnswer => "no answer",
            };
            write!(f, "\n  {page}: {result}")?;
        }
        Ok(())
    }
}

/// Checks exit bridges.
pub struct Checker {
    paths: Paths,
    path: PathKind,
    https: Option<Https>,
    pages: Vec<Page>,
}

impl Checker {
    /// Connects to the Tor network.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn start(config: &Config, pages: Vec<Page>, runtime: TorRuntime) -> Result<Self, RunError> {
        let https =
            pages.iter().any(|page| page.tls).then(Https::new).transpose().map_err(RunError::Probe)?;
        let tor_config = config.tor_client_config()?;
        let tor = TorClient::with_runtime(runtime)
            .config(tor_config.clone())
            .create_bootstrapped()
            .await
            .map_err(|error| RunError::Tor(Box::new(error)))?;
        Ok(Self { paths: Paths::new(tor, &tor_config)?, path: config.path, https, pages })
    }

    /// Checks one exit bridge, the `line`th.
    pub async fn check(&self, line: usize, bridge: &BridgeLine) -> Checked {
        let start = Instant::now();
        let built = timeout(BUILD_TIMEOUT, self.build(bridge)).await;
        let seconds = start.elapsed().as_secs_f64();
        let built = built.unwrap_or_else(|_| Err(CircuitError::ExitBridge("no answer in time".to_owned())));
        match built {
            Ok(circuit) => {
                let visits = self.pages.iter().map(|page| self.visit(&circuit, page));
                let visits = futures::future::join_all(visits).await;
                Checked { line, serves: true, seconds, error: None, no_tor: false, visits }
            }
            Err(error) => {
                let no_tor = matches!(error, CircuitError::Tor(_));
                Checked { seconds, no_tor, ..Checked::unusable(line, &error) }
            }
        }
    }

    /// Fetches the server descriptor of a circuit exit bridge.
    ///
    /// # Errors
    /// See [`CircuitError`].
    pub async fn server_descriptor(&self, bridge: &BridgeLine) -> Result<String, CircuitError> {
        let Reach::Circuit(reach) = &bridge.reach else {
            return Err(CircuitError::ExitBridge("an onion exit bridge has no server descriptor".to_owned()));
        };
        by_some_path(async || self.paths.server_descriptor(reach).await).await
    }

    async fn build(&self, bridge: &BridgeLine) -> Result<Circuit, CircuitError> {
        by_some_path(async || self.paths.build(&bridge.reach, self.path).await).await
    }

    async fn visit(&self, circuit: &Circuit, page: &Page) -> Visit {
        let answer = async {
            let opening = circuit.begin(&page.host, page.port, false);
            let stream = timeout(CONNECT_TIMEOUT, opening).await.ok()?.ok()?;
            let https = self.https.as_ref().filter(|_| page.tls);
            probe::ask(https, stream, &page.host, page.port).await
        };
        let result = match answer.await {
            Some(Answer::Blocked(_)) => Visited::Blocked,
            Some(Answer::Open) => Visited::Open,
            Some(Answer::More) | None => Visited::NoAnswer,
        };
        Visit { page: page.clone(), result }
    }
}

/// Tries more than one path.
async fn by_some_path<T>(way: impl AsyncFn() -> Result<T, CircuitError>) -> Result<T, CircuitError> {
    let mut tried = 1;
    loop {
        match way().await {
            Err(_) if tried < MAX_PATHS => tried += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_first_pages_of_origins() {
        for (text, tls, host, port) in [
            ("https://a.example/", true, "a.example", 443),
            ("http://a.example", false, "a.example", 80),
            ("http://[2001:db8::1]:8080/", false, "2001:db8::1", 8080),
        ] {
            let page: Page = text.parse().unwrap();
            assert_eq!(page, Page { tls, host: host.into(), port });
            assert_eq!(page.to_string().parse(), Ok(page));
        }
        for bad in [
            "a.example",
            "ftp://a.example/",
            "https://a.example/x",
            "https://u:p@a.example/",
            "https://:1/",
            "",
        ] {
            assert!(bad.parse::<Page>().is_err(), "{bad:?}");
        }
    }
}
