//! Whether an origin turned us away, and whether what it was asked may be asked again. Pure functions.

use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

/// Most bytes of an answer that are looked at.
pub const MAX_LOOKED_AT: usize = 16 * 1024;

/// Most header fields that are read.
const MAX_FIELDS: usize = 100;

/// Answers by which web sites turn visitors away.
static PAGES: LazyLock<Vec<Page>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        page: Vec<Page>,
    }
    // A test reads it first.
    toml::from_str(include_str!("../data/block-pages.toml")).map_or_else(|_| Vec::new(), |f: File| f.page)
});

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    name: String,
    status: Vec<u16>,
    #[serde(default)]
    header: Vec<String>,
    #[serde(default)]
    body: Vec<String>,
}

/// How an origin turned us away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It refused the connection.
    Refused,
    /// The exit could not connect to it, and does not say why. Exits of C tor (0.4.9.11) say so of connections that were
    /// refused.
    NotTaken,
    /// It reset or closed the connection before it said anything.
    Closed,
    /// It said nothing, where an exit bridge got an answer.
    Silent,
    /// TLS alert 49, `access_denied` (RFC 8446, section 6.2).
    AccessDenied,
    /// A block page, by the name of its entry in `data/block-pages.toml`.
    Page(&'static str),
    /// A status other than an exit bridge gets.
    Status(u16),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status(status) => return write!(f, "it answers Tor with status {status}"),
            Self::Refused => "it refuses connections from Tor",
            Self::NotTaken => "it takes no connections from Tor",
            Self::Closed => "it closes connections from Tor",
            Self::Silent => "it does not answer Tor",
            Self::AccessDenied => "it denies Tor access in TLS",
            Self::Page(name) => name,
        })
    }
}

/// What the first bytes of an answer mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It takes more of them to tell.
    More,
    /// An answer like any other.
    Open,
    /// The origin turned us away.
    Blocked(Reason),
}

/// Whether all that the program has said may be said again to the same origin: nothing, the start of a TLS
/// handshake without any data in it, or HTTP requests by safe methods without a body (RFC 9110, section
/// 9.2.1), of which the last one may be unfinished.
pub fn may_repeat(sent: &[u8]) -> bool {
    match sent.first() {
        None => true,
        Some(&TLS_HANDSHAKE) => is_client_hello(sent),
        Some(_) => are_safe_requests(sent),
    }
}

/// Content types of TLS records, and the type of a ClientHello (RFC 8446, sections 4 and 5.1).
const TLS_ALERT: u8 = 21;
pub(crate) const TLS_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const ACCESS_DENIED: u8 = 49;

/// Is it handshake records with a ClientHello, or the start of them, and nothing behind?
fn is_client_hello(mut bytes: &[u8]) -> bool {
    let (mut need, mut got) = (None, 0);
    while let [kind, version, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let fragment = &rest[..length.min(rest.len())];
        if *kind != TLS_HANDSHAKE || *version != 3 || need.is_some_and(|need| got >= need) {
            return false;
        }
        if need.is_none() {
            match fragment {
                [CLIENT_HELLO, a, b, c, ..] => {
                    need =
                        Some(4 + usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX));
                }
                [CLIENT_HELLO, ..] | [] => return rest.len() < length,
                _ => return false,
            }
        }
        got += length;
        bytes = &rest[fragment.len()..];
    }
    // What is left is part of a record's header.
    need.is_none_or(|need| bytes.is_empty() || got < need)
}

fn are_safe_requests(mut bytes: &[u8]) -> bool {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(bytes);
        // The method is followed by a space once it is known.
        if !matches!(request.method, Some("GET" | "HEAD" | "OPTIONS")) {
            return false;
        }
        let body = ["content-length", "transfer-encoding"];
        if request.headers.iter().any(|f| body.iter().any(|name| f.name.eq_ignore_ascii_case(name))) {
            return false;
        }
        match parsed {
            Ok(httparse::Status::Complete(length)) if length < bytes.len() => bytes = &bytes[length..],
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// What the origin's first bytes mean, behind what it was sent. `all`: nothing more will come, or not soon.
pub fn judge(sent: &[u8], got: &[u8], all: bool) -> Answer {
    let open_unless_more = if all || got.len() >= MAX_LOOKED_AT { Answer::Open } else { Answer::More };
    match (sent.first(), got) {
        (_, []) => open_unless_more,
        // Record header, level, description.
        (Some(&TLS_HANDSHAKE), [TLS_ALERT, _, _, _, _, _, ACCESS_DENIED, ..]) => {
            Answer::Blocked(Reason::AccessDenied)
        }
        (Some(&TLS_HANDSHAKE), [TLS_ALERT, rest @ ..]) if rest.len() < 6 => open_unless_more,
        (Some(b'A'..=b'Z'), _) => judge_http(sent, got, open_unless_more),
        _ => Answer::Open,
    }
}

/// What the answer to a request for the first page means, which anybody may have: there a status alone says that
/// it was refused. Only beside the answer that an exit bridge gets.
pub fn judge_probe(got: &[u8], all: bool) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let _judged_below = response.parse(got);
    match (judge(b"GET / HTTP/1.1", got, all), response.code) {
        (Answer::Open, Some(status @ (403 | 429 | 451 | 503))) => Answer::Blocked(Reason::Status(status)),
        (answer, _) => answer,
    }
}

fn judge_http(sent: &[u8], got: &[u8], open_unless_more: Answer) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(got);
    let Some(status) = response.code else {
        return if matches!(parsed, Ok(httparse::Status::Partial)) { open_unless_more } else { Answer::Open };
    };
    // Almost every answer ends here: nothing is waited for.
    if !PAGES.iter().any(|page| page.status.contains(&status)) {
        return Answer::Open;
    }
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return open_unless_more,
        Err(_) => return Answer::Open,
    };
    let field = |name: &str| {
        response.headers.iter().find(|f| f.name.eq_ignore_ascii_case(name)).map_or(&b""[..], |f| f.value)
    };
    let chunked = !field("transfer-encoding").is_empty();
    let raw = &got[length..];
    let body = if chunked { unchunk(raw) } else { raw.to_vec() };
    let gzip = field("content-encoding").eq_ignore_ascii_case(b"gzip");
    let body = if gzip { gunzip(&body) } else { body }.to_ascii_lowercase();
    let said = |text: &str| contains(&body, text.to_ascii_lowercase().as_bytes());
    let has = |header: &str| {
        let (name, text) = header.split_once(": ").unwrap_or((header, ""));
        let value = field(name).to_ascii_lowercase();
        !value.is_empty() && contains(&value, text.to_ascii_lowercase().as_bytes())
    };
    let matching = PAGES.iter().filter(|page| page.status.contains(&status));
    for page in matching {
        if page.header.iter().all(|h| has(h)) && page.body.iter().all(|text| said(text)) {
            return Answer::Blocked(Reason::Page(&page.name));
        }
    }
    let whole = std::str::from_utf8(field("content-length")).ok().and_then(|n| n.parse().ok());
    let bodiless = sent.starts_with(b"HEAD ") || whole.is_some_and(|n: usize| raw.len() >= n);
    let last_chunk = chunked && raw.ends_with(b"0\r\n\r\n");
    if bodiless || last_chunk { Answer::Open } else { open_unless_more }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || hay.windows(needle.len()).any(|at| at == needle)
}

/// The body of chunks, as far as it is there (RFC 9112, section 7.1).
fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, length))) = httparse::parse_chunk_size(bytes) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let chunk = &bytes[start..];
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        if length == 0 || chunk.len() < length.saturating_add(2) {
            break;
        }
        bytes = &chunk[length + 2..];
    }
    body
}

/// What a gzip stream that may be cut says, up to four times what is looked at.
fn gunzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut text = vec![0; 4 * MAX_LOOKED_AT];
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    let mut filled = 0;
    while let Ok(n @ 1..) = decoder.read(&mut text[filled..]) {
        filled += n;
    }
    text.truncate(filled);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TLS record.
    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 1][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    fn client_hello(length: usize) -> Vec<u8> {
        let size = u32::try_from(length).unwrap().to_be_bytes();
        [&[CLIENT_HELLO][..], &size[1..], &vec![7; length]].concat()
    }

    #[test]
    fn a_client_hello_may_be_repeated_whole_or_in_part_but_no_data_behind_it() {
        let hello = client_hello(1700);
        let one = record(TLS_HANDSHAKE, &hello);
        let two = [record(TLS_HANDSHAKE, &hello[..1000]), record(TLS_HANDSHAKE, &hello[1000..])].concat();
        for whole in [&one, &two] {
            (0..=whole.len()).for_each(|n| assert!(may_repeat(&whole[..n]), "{n}"));
            // Early data: a request may be in it.
            for kind in [20, 23, TLS_HANDSHAKE] {
                let more = [&whole[..], &record(kind, &[1, 2, 3])].concat();
                assert!(!may_repeat(&more), "{kind}");
                assert!(!may_repeat(&more[..=whole.len()]), "{kind}");
            }
        }
        assert!(!may_repeat(&record(TLS_HANDSHAKE, &[2, 0, 0, 1, 0])), "a ServerHello");
        assert!(!may_repeat(&record(23, b"data")));
    }

    #[test]
    fn only_safe_requests_without_a_body_may_be_repeated() {
        for safe in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            "HEAD / HTTP/1.0\r\n\r\n",
            "GET /unfin",
            "GET / HTTP/1.1\r\nHo",
            "GET / HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n\r\n",
        ] {
            assert!(may_repeat(safe.as_bytes()), "{safe:?}");
        }
        for not in [
            "POST / HTTP/1.1\r\n\r\n",
            "PUT / HTTP/1.1\r\n",
            "DELETE / HTTP/1.1\r\n\r\n",
            "GE",
            "GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "SSH-2.0-x\r\n",
            "\u{1}binary",
        ] {
            assert!(!may_repeat(not.as_bytes()), "{not:?}");
        }
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn http(head: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn each_block_page_is_known() {
        let cloudflare = "403 Forbidden\r\nServer: cloudflare";
        let answers = [
            http("403 Forbidden\r\nServer: cloudflare\r\nCf-Mitigated: challenge", "<html>"),
            http(cloudflare, "<h1>Sorry, you have been blocked</h1>"),
            http(cloudflare, "error code: 1020"),
            http(cloudflare, "<html><head><title>Just a moment...</title>"),
            http(
                "403 Forbidden\r\nServer: AkamaiGHost",
                "<HTML><HEAD>\n<TITLE>Access Denied</TITLE></HEAD>You don't have permission to access",
            ),
            http("403 Forbidden\r\nX-Cache: Error from cloudfront", "<H1>403 ERROR</H1>Request blocked."),
            http("405 Method Not Allowed\r\nx-amzn-waf-action: captcha", ""),
            http("403 Forbidden", "<iframe src=\"/_Incapsula_Resource?x\">"),
            http("403 Forbidden\r\nServer: Sucuri/Cloudproxy", ""),
            http("403 Forbidden\r\nX-DataDome: protected", ""),
            http("403 Forbidden", "<div id=\"px-captcha\"></div>"),
            http("403 Forbidden\r\nServer: ddos-guard", ""),
            http("503 Service Unavailable", "Generated by Wordfence at"),
            http("403 Forbidden", "Your address is on a list of Tor exit relays."),
            http("429 Too Many Requests", ""),
            http("451 Unavailable For Legal Reasons", ""),
        ];
        assert_eq!(answers.len(), PAGES.len(), "an answer for each entry");
        for (answer, page) in answers.iter().zip(PAGES.iter()) {
            assert_eq!(judge(GET, answer, false), Answer::Blocked(Reason::Page(&page.name)));
        }
    }

    #[test]
    fn other_answers_are_let_through_as_soon_as_they_are_told_apart() {
        assert_eq!(judge(GET, b"HTTP/1.1 20", false), Answer::More);
        assert_eq!(judge(GET, b"HTTP/1.1 200 OK\r\n", false), Answer::Open);
        assert_eq!(judge(GET, b"HTTP/1.1 403 Forbidden\r\n", false), Answer::More);
        assert_eq!(judge(GET, &http("403 Forbidden", "members only"), false), Answer::Open);
        assert_eq!(judge(GET, b"HTTP/1.1 403 Forbidden\r\n\r\nmembers", false), Answer::More);
        assert_eq!(judge(GET, b"HTTP/1.1 403 Forbidden\r\n\r\nmembers", true), Answer::Open);
        assert_eq!(judge(b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 403 F\r\n\r\n", false), Answer::Open);
        assert_eq!(judge(GET, b"SSH-2.0", false), Answer::Open);
        assert_eq!(judge(b"", b"220 mail", false), Answer::Open);
        // A page that talks about Tor exits and is no refusal.
        assert_eq!(judge(GET, &http("200 OK", "tor exit"), false), Answer::Open);
    }

    #[test]
    fn a_first_page_is_refused_by_its_status_alone() {
        let refused = http("403 Forbidden", "members only");
        assert_eq!(judge_probe(&refused, false), Answer::Blocked(Reason::Status(403)));
        assert_eq!(judge_probe(&refused[..30], false), Answer::More);
        assert_eq!(
            judge_probe(&http("403 Forbidden", "tor exit"), false),
            Answer::Blocked(Reason::Page("a page about Tor exits"))
        );
        for open in [
            "200 OK",
            "301 Moved Permanently",
            "401 Unauthorized",
            "404 Not Found",
            "500 Internal Server Error",
        ] {
            assert_eq!(judge_probe(&http(open, ""), false), Answer::Open, "{open}");
        }
        assert_eq!(judge_probe(b"", true), Answer::Open);
    }

    #[test]
    fn bodies_in_chunks_and_packed_ones_are_read() {
        use std::io::Write as _;
        let head = b"HTTP/1.1 403 F\r\nTransfer-Encoding: chunked\r\n";
        let chunks = [&head[..], b"\r\n4\r\non a\r\n9\r\n list of \r\n8\r\nTor exit\r\n0\r\n\r\n"].concat();
        let blocked = Answer::Blocked(Reason::Page("a page about Tor exits"));
        assert_eq!(judge(GET, &chunks, false), blocked);
        let other = [&head[..], b"\r\n4\r\nno!!\r\n0\r\n\r\n"].concat();
        assert_eq!(judge(GET, &other, false), Answer::Open);
        assert_eq!(judge(GET, &other[..other.len() - 5], false), Answer::More);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(b"a list of Tor exits").unwrap();
        let packed = packed.finish().unwrap();
        let head = b"HTTP/1.1 403 F\r\nContent-Encoding: gzip\r\n\r\n";
        assert_eq!(judge(GET, &[&head[..], &packed].concat(), false), blocked);
        assert_eq!(judge(GET, &[&head[..], &packed[..5]].concat(), false), Answer::More);
    }

    #[test]
    fn of_tls_only_a_denied_access_is_a_refusal() {
        let hello = record(TLS_HANDSHAKE, &client_hello(100));
        assert_eq!(judge(&hello, &[TLS_HANDSHAKE], false), Answer::Open);
        assert_eq!(
            judge(&hello, &record(TLS_ALERT, &[2, ACCESS_DENIED]), false),
            Answer::Blocked(Reason::AccessDenied)
        );
        assert_eq!(judge(&hello, &record(TLS_ALERT, &[2, 40]), false), Answer::Open);
        assert_eq!(judge(&hello, &[TLS_ALERT, 3], false), Answer::More);
        assert_eq!(judge(&hello, &[TLS_ALERT, 3], true), Answer::Open);
    }
}
