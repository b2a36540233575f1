//! What TLS hides: asks an HTTPS site for its first page, as nobody, and sees whether it turns Tor away.
//!
//! Only where the person wants it, since a site is visited that was visited anyway, but once more.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tor_proto::client::stream::DataStream;

use crate::blocked::{Answer, Reason, judge_probe};
use crate::connect::{Connector, Group, Seen};
use eebt_tor::Https;

/// How often a host is asked, at most, while this program runs.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Most hosts whose last time is remembered; then the one that was asked first is forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Most that are asked at once.
const AT_ONCE: usize = 4;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the targets of `seen`. Never returns.
pub(crate) async fn run(connector: Arc<Connector>, https: Https, mut seen: mpsc::Receiver<Seen>) {
    let mut asked = Asked::default();
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(seen) = seen.recv().await {
        if !asked.is_due(&seen, Instant::now()) {
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (connector, https) = (Arc::clone(&connector), https.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(reason) = probe(&connector, &https, &seen).await {
                let Seen { group, host, port } = seen;
                connector.verdicts().note_proven(&group, &host, port, reason, SystemTime::now());
            }
        });
    }
    std::future::pending().await
}

/// Who was asked, and when last: each host for each of those who visit it. A host that was asked for one site in the
/// address bar and therefore not for the next would tell the two that they have the same visitor.
#[derive(Default)]
struct Asked {
    last: HashMap<u64, Instant>,
    hash: RandomState,
}

impl Asked {
    /// Whether it is time, which is then over.
    fn is_due(&mut self, seen: &Seen, now: Instant) -> bool {
        let target = self.hash.hash_one((&seen.group.credentials, &seen.host));
        if self.last.get(&target).is_some_and(|last| now.duration_since(*last) < EVERY) {
            return false;
        }
        if self.last.len() >= MAX_REMEMBERED {
            let oldest = self.last.iter().min_by_key(|(_, last)| **last).map(|(target, _)| *target);
            oldest.map(|target| self.last.remove(&target));
        }
        self.last.insert(target, now);
        true
    }
}

/// How a site turns Tor away. `None` when it doesn't, and when an exit bridge is turned away as well: then it is
/// not Tor that the site dislikes, but the look of our request, say.
///
/// The exit bridge is the one that the visitor has already, so that a page with many hosts meets no others; the circuit is
/// nobody's, as over Tor.
async fn probe(connector: &Connector, https: &Https, seen: &Seen) -> Option<Reason> {
    let (host, port) = (seen.host.as_str(), seen.port);
    let over_tor = connector.through_tor(&Group::of_nobody(), host, port).await.ok()?;
    let Answer::Blocked(reason) = ask(Some(https), over_tor.stream, host, port).await? else { return None };
    let nobody = Group::of_nobody();
    let opening = connector.through_exit_bridge_of(&seen.group, &nobody, host, port);
    let other = timeout(TIMEOUT, opening).await.ok()?.ok()?;
    match ask(Some(https), other.stream, host, port).await? {
        Answer::Open => Some(reason),
        _ => None,
    }
}

/// What `/` is answered with, by HTTPS or plain HTTP; `None` without an answer.
pub(crate) async fn ask(https: Option<&Https>, stream: DataStream, host: &str, port: u16) -> Option<Answer> {
    let asking = async {
        match https {
            Some(https) => answer(https.connect(host, stream).await?, request(host, port, 443)).await,
            None => answer(stream, request(host, port, 80)).await,
        }
    };
    timeout(TIMEOUT, asking).await.ok()?.ok()
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: String) -> io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut got = Vec::new();
    loop {
        // Many end without saying so in TLS.
        let all = matches!(stream.read_buf(&mut got).await, Ok(0) | Err(_));
        match judge_probe(&got, all) {
            _ if all && got.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Answer::More => {}
            answer => return Ok(answer),
        }
    }
}

/// As a browser asks that comes for the first time. Without compressions that we don't read.
fn request(host: &str, port: u16, usual: u16) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = if port == usual { String::new() } else { format!(":{port}") };
    format!(
        "GET / HTTP/1.1\r\n\
         Host: {host}{port}\r\n\
         User-Agent: Mozilla/5.0 (Windows NT 10.0; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
         Accept-Language: en-US,en;q=0.5\r\n\
         Accept-Encoding: gzip\r\n\
         Connection: close\r\n\
         Upgrade-Insecure-Requests: 1\r\n\
         Sec-Fetch-Dest: document\r\n\
         Sec-Fetch-Mode: navigate\r\n\
         Sec-Fetch-Site: none\r\n\
         Sec-Fetch-User: ?1\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(group: &Group, host: &str, port: u16) -> Seen {
        Seen { group: group.clone(), host: host.to_owned(), port }
    }

    #[test]
    fn a_host_is_asked_once_a_day_for_each_who_visits_it() {
        let mut asked = Asked::default();
        let (now, a) = (Instant::now(), Group::of_nobody());
        assert!(asked.is_due(&seen(&a, "a.example", 443), now));
        assert!(!asked.is_due(&seen(&a, "a.example", 443), now + EVERY / 2));
        assert!(!asked.is_due(&seen(&a, "a.example", 8443), now), "another port");
        assert!(asked.is_due(&seen(&a, "b.example", 443), now));
        assert!(asked.is_due(&seen(&a, "a.example", 443), now + EVERY));
        assert!(!asked.is_due(&seen(&a, "a.example", 443), now + EVERY));
        // What is asked for one says nothing to another.
        assert!(asked.is_due(&seen(&Group::of_nobody(), "a.example", 443), now + EVERY));
        let same = Group { listener: ([127, 0, 0, 1], 9999).into(), ..a };
        assert!(!asked.is_due(&seen(&same, "a.example", 443), now + EVERY));
    }

    #[test]
    fn when_there_are_too_many_only_the_oldest_is_forgotten() {
        let (mut asked, group, start) = (Asked::default(), Group::of_nobody(), Instant::now());
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let host = |n: usize| seen(&group, &format!("{n}.example"), 443);
        (0..=MAX_REMEMBERED).for_each(|n| assert!(asked.is_due(&host(n), at(n))));
        assert_eq!(asked.last.len(), MAX_REMEMBERED);
        let later = at(MAX_REMEMBERED + 1);
        assert!(!asked.is_due(&host(1), later) && !asked.is_due(&host(MAX_REMEMBERED), later));
        assert!(asked.is_due(&host(0), later));
    }

    #[test]
    fn requests_name_their_host() {
        assert!(request("a.example", 443, 443).contains("\r\nHost: a.example\r\n"));
        assert!(request("2001:db8::1", 8443, 443).contains("\r\nHost: [2001:db8::1]:8443\r\n"));
        let mut fields = [httparse::EMPTY_HEADER; 20];
        assert!(
            httparse::Request::new(&mut fields)
                .parse(request("a", 443, 443).as_bytes())
                .unwrap()
                .is_complete()
        );
    }
}
