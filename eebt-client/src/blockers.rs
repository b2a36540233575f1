//! Lists of sites that are known to turn Tor away: they go to an exit bridge at once.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hyper::Uri;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::connect::{Connector, Group};
use crate::route::normal;
use eebt_tor::{Https, fetch};

/// The list that comes with the program.
const SHIPPED: &str = include_str!("../data/blockers.txt");

/// Longest list that is fetched, in bytes.
const MAX_LENGTH: usize = 2 << 20;

/// How often a file is looked at.
const FILE_EVERY: Duration = Duration::from_secs(5);

/// How often a list is fetched, and how soon again after a failure.
const FETCH_EVERY: Duration = Duration::from_secs(24 * 3600);
const FETCH_AGAIN: Duration = Duration::from_secs(600);
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// Hosts, and domains with all below them.
#[derive(Default)]
pub struct Blockers {
    shipped: Hosts,
    /// From the person's own list.
    own: RwLock<Hosts>,
}

type Hosts = HashSet<String>;

/// Where a list comes from besides the program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ListSource {
    /// A file, read again when it changes.
    File(PathBuf),
    /// `https://`, or `http://` at an onion service; fetched over Tor once a day.
    Url(Uri),
}

/// Why a text names no list.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It looks like a URL and is none.
    #[error("not a URL")]
    Url,
    /// Whoever is on the way could change the list.
    #[error("only https:// and http://...onion/ are safe from changes on the way")]
    Scheme,
}

impl FromStr for ListSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let uri: Uri = text.parse().map_err(|_| SourceError::Url)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(SourceError::Url)?;
        match uri.scheme_str() {
            Some("https") => Ok(Self::Url(uri)),
            Some("http") if normal(host).ends_with(".onion") => Ok(Self::Url(uri)),
            _ => Err(SourceError::Scheme),
        }
    }
}

impl TryFrom<String> for ListSource {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl Blockers {
    /// With the list that comes with the program, or without any.
    pub fn new(shipped: bool) -> Self {
        let shipped = if shipped { parse(SHIPPED).0 } else { Hosts::new() };
        Self { shipped, own: RwLock::default() }
    }

    /// Is `host` on a list?
    pub fn contains(&self, host: &str) -> bool {
        let host = normal(host);
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let listed = |entry: &str| self.shipped.contains(entry) || own.contains(entry);
        let below = host.match_indices('.').map(|(at, _)| &host[at..]);
        listed(&host) || listed(&format!(".{host}")) || below.into_iter().any(listed)
    }

    /// Takes over the person's own list.
    fn replace(&self, text: &str) {
        let (hosts, wrong) = parse(text);
        if let Some(line) = wrong.first() {
            tracing::warn!(
                first = line,
                lines = wrong.len(),
                "blocker_list: lines that are no host and no *.domain are left out"
            );
        }
        tracing::info!(entries = hosts.len(), "blocker_list read");
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// Keeps the person's own list up to date. Never returns.
    pub(crate) async fn follow(self: Arc<Self>, source: Option<&ListSource>, connector: &Connector) {
        match source {
            None => std::future::pending().await,
            Some(ListSource::File(path)) => self.follow_file(path).await,
            Some(ListSource::Url(uri)) => self.follow_url(uri, connector).await,
        }
    }

    async fn follow_file(&self, path: &Path) {
        let mut seen = None;
        loop {
            let now = stamp(path);
            if now.is_some() && now != seen {
                match std::fs::read_to_string(path) {
                    Ok(text) => self.replace(&text),
                    Err(error) => {
                        tracing::warn!(%error, "blocker_list cannot be read; the one of before stays")
                    }
                }
                seen = now;
            }
            sleep(FILE_EVERY).await;
        }
    }

    async fn follow_url(&self, uri: &Uri, connector: &Connector) {
        loop {
            let fetched = timeout(FETCH_TIMEOUT, fetch_list(uri, connector)).await;
            let fetched =
                fetched.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
            match fetched {
                Ok(text) => {
                    self.replace(&text);
                    sleep(FETCH_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "blocker_list was not fetched; the one of before stays"
                    );
                    sleep(FETCH_AGAIN).await;
                }
            }
        }
    }
}

async fn fetch_list(uri: &Uri, connector: &Connector) -> anyhow::Result<String> {
    let host = uri.host().unwrap_or_default();
    let is_https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = connector.through_tor(&Group::of_nobody(), host, port).await?.stream;
    let body = if is_https {
        fetch(Https::new()?.connect(host, stream).await?, uri, MAX_LENGTH).await?
    } else {
        fetch(stream, uri, MAX_LENGTH).await?
    };
    Ok(String::from_utf8(body.into())?)
}

/// What tells one version of a file from the next.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The entries, `.domain` for a domain with all below it, and the numbers of lines that are none.
fn parse(text: &str) -> (Hosts, Vec<usize>) {
    let mut hosts = Hosts::new();
    let mut wrong = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let (dot, host) = entry.strip_prefix("*.").map_or(("", entry), |domain| (".", domain));
        let host = normal(host);
        let is_host =
            host.contains('.') && host.split('.').all(|label| !label.is_empty()) || host.contains("::");
        if is_host && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)) {
            hosts.insert(format!("{dot}{host}"));
        } else {
            wrong.push(n + 1);
        }
    }
    (hosts, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_is_well_formed() {
        let (hosts, wrong) = parse(SHIPPED);
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(!hosts.is_empty());
    }

    #[test]
    fn hosts_and_domains_are_found_and_nothing_else() {
        let blockers = Blockers::new(false);
        blockers.replace("# a list\nexample.com\n*.Example.ORG # and below\n198.51.100.7\n2001:db8::1\n");
        for listed in
            ["example.com", "EXAMPLE.com.", "example.org", "a.b.example.org", "198.51.100.7", "2001:db8:0::1"]
        {
            assert!(blockers.contains(listed), "{listed}");
        }
        for other in ["a.example.com", "notexample.org", "org", "com", "", "198.51.100.8"] {
            assert!(!blockers.contains(other), "{other}");
        }
    }

    #[test]
    fn lines_that_are_no_host_are_named() {
        assert_eq!(
            parse("a.example\nhttp://x\n*\n\n*.b.example\n*.\na..b\n<html>\ncom").1,
            [2, 3, 6, 7, 8, 9]
        );
    }

    #[test]
    fn lists_come_from_where_nobody_can_change_them() {
        assert_eq!("list.txt".parse::<ListSource>().unwrap(), ListSource::File("list.txt".into()));
        assert!(matches!("https://example.com/list".parse(), Ok(ListSource::Url(_))));
        assert!(matches!("http://abc.onion/list".parse(), Ok(ListSource::Url(_))));
        for bad in ["http://example.com/list", "ftp://example.com/", "https://", "file:///etc/passwd"] {
            assert!(bad.parse::<ListSource>().is_err(), "{bad}");
        }
    }
}
