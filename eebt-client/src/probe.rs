//! What TLS hides: asks an HTTPS site for its first page, as nobody, and sees whether it turns Tor away.
//!
//! Only where the person wants it, since a site is visited that was visited anyway, but once more.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tor_proto::client::stream::DataStream;

use crate::blocked::{Answer, Reason, judge_probe};
use crate::connect::{Connector, Group};
use crate::https::Https;

/// How often one target is asked, at most.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Most targets whose last time is remembered; then all are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Most that are asked at once.
const AT_ONCE: usize = 4;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the targets of `seen`, host and port, that TLS was just spoken with over Tor. Never returns.
pub(crate) async fn run(connector: Arc<Connector>, https: Https, mut seen: mpsc::Receiver<(String, u16)>) {
    let asked = Mutex::new(HashMap::new());
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    while let Some((host, port)) = seen.recv().await {
        if !is_due(&asked, &host, port, Instant::now()) {
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (connector, https) = (Arc::clone(&connector), https.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(reason) = probe(&connector, &https, &host, port).await {
                connector.verdicts().note(&host, port, reason, SystemTime::now());
            }
        });
    }
    std::future::pending().await
}

fn is_due(asked: &Mutex<HashMap<(String, u16), Instant>>, host: &str, port: u16, now: Instant) -> bool {
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let target = (host.to_owned(), port);
    if asked.get(&target).is_some_and(|last| now.duration_since(*last) < EVERY) {
        return false;
    }
    if asked.len() >= MAX_REMEMBERED {
        asked.clear();
    }
    asked.insert(target, now);
    true
}

/// How a site turns Tor away. `None` when it doesn't, and when an exit bridge is turned away as well: then it is
/// not Tor that the site dislikes, but the look of our request, say.
async fn probe(connector: &Connector, https: &Https, host: &str, port: u16) -> Option<Reason> {
    let over_tor = connector.through_tor(&Group::of_nobody(), host, port).await.ok()?;
    let Answer::Blocked(reason) = ask(Some(https), over_tor.stream, host, port).await? else { return None };
    let group = Group::of_nobody();
    let other = timeout(TIMEOUT, connector.through_exit_bridge(&group, host, port)).await.ok()?.ok()?;
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

    #[test]
    fn a_target_is_asked_once_a_day() {
        let asked = Mutex::default();
        let now = Instant::now();
        assert!(is_due(&asked, "a.example", 443, now));
        assert!(!is_due(&asked, "a.example", 443, now + EVERY / 2));
        assert!(is_due(&asked, "a.example", 8443, now));
        assert!(is_due(&asked, "b.example", 443, now));
        assert!(is_due(&asked, "a.example", 443, now + EVERY));
        assert!(!is_due(&asked, "a.example", 443, now + EVERY));
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
