//! Who may ask: a browser that the person pointed here, and no web site in it.
//!
//! | request | answer | stops |
//! |---|---|---|
//! | `Host` is not ours, absent, or there are several | 403, says nothing | DNS rebinding: a site's name that leads here |
//! | no token, or a wrong one | 404, says how to find the page | other users of the machine; sites that guess |
//! | `Sec-Fetch-Site` says that another site asks | 403 | links, images and frames of sites that learned the token |
//! | GET of the entrance, which only leads on | let in from anywhere | |
//! | neither GET, HEAD nor POST | 405 | |
//! | POST whose `Origin` is another's | 403 | forms of other sites |
//! | POST with `Origin: null` or none, not vouched for by `Sec-Fetch-Site: same-origin` | 403 | forms in sandboxes |
//!
//! A browser sends `Sec-Fetch-Site` by itself; no site can set it. Our own pages ask for
//! `Referrer-Policy: same-origin`, so that our own forms do have an `Origin`, and nobody else sees our address.

use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::ENTRANCE;
use crate::place::Place;

/// Sent with every answer.
const FIELDS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("referrer-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-robots-tag", "noindex"),
];

/// Why somebody is turned away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It came by a name that is not ours.
    Host,
    /// It does not know the token.
    Token,
    /// Another site has it sent.
    Site,
    /// The method.
    Method,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Host => (StatusCode::FORBIDDEN, "forbidden\n").into_response(),
            Self::Token => (StatusCode::NOT_FOUND, "not found\n").into_response(),
            Self::Site => (StatusCode::FORBIDDEN, "forbidden: sent by another site\n").into_response(),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD, POST")], "GET and POST only\n")
                    .into_response()
            }
        }
    }
}

/// May this request be served?
pub(crate) fn check<B>(place: &Place, request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    let hosts = place.hosts();
    let ours = |said: &str| hosts.iter().any(|host| host.eq_ignore_ascii_case(said));
    // A request as to a proxy names a host in its first line, too.
    let named = request.uri().authority().is_none_or(|authority| ours(authority.as_str()));
    if !named || !only(headers, "host").is_some_and(ours) {
        return Err(Refusal::Host);
    }
    let said = request.uri().path().strip_prefix('/').unwrap_or_default();
    if !place.is_token(said.split('/').next().unwrap_or_default()) {
        return Err(Refusal::Token);
    }
    let site = match headers.contains_key("sec-fetch-site") {
        true => Some(only(headers, "sec-fetch-site").unwrap_or("?")),
        false => None,
    };
    match *request.method() {
        // What brings a browser here from a file of ours: it shows nothing and does nothing, but lead on.
        Method::GET if said.split_once('/').is_some_and(|(_, rest)| rest == ENTRANCE) => Ok(()),
        // "none": typed, a bookmark, another program.
        Method::GET | Method::HEAD if matches!(site, None | Some("same-origin" | "none")) => Ok(()),
        Method::POST if is_own_form(headers, site, ours) => Ok(()),
        Method::GET | Method::HEAD | Method::POST => Err(Refusal::Site),
        _ => Err(Refusal::Method),
    }
}

fn is_own_form(headers: &HeaderMap, site: Option<&str>, ours: impl Fn(&str) -> bool) -> bool {
    let same = matches!(site, Some("same-origin"));
    if !headers.contains_key("origin") {
        return same;
    }
    match only(headers, "origin") {
        Some("null") => same,
        Some(origin) => origin.strip_prefix("http://").is_some_and(ours) && (same || site.is_none()),
        None => false,
    }
}

/// A field that is there once, and is a text.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Has a browser keep the answer to itself.
pub(crate) fn seal(response: &mut Response) {
    for (name, value) in FIELDS {
        response.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request with the real token where the path says TOKEN.
    fn ask(method: &str, path: &str, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        let place = Place::new(([127, 0, 0, 1], 9152).into());
        let token = place.url().split('/').nth(3).unwrap().to_owned();
        let mut request = Request::builder().method(method).uri(path.replace("TOKEN", &token));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&place, &request.body(()).unwrap())
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:9152");
    const OURS: (&str, &str) = ("origin", "http://127.0.0.1:9152");
    const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");

    #[test]
    fn the_persons_browser_is_let_in() {
        for (method, fields) in [
            ("GET", &[HOST][..]),
            ("HEAD", &[HOST]),
            ("GET", &[("host", "localhost:9152")]),
            ("GET", &[("host", "LOCALHOST:9152")]),
            ("GET", &[HOST, ("sec-fetch-site", "none")]),
            ("GET", &[HOST, SAME]),
            ("POST", &[HOST, OURS]),
            ("POST", &[HOST, OURS, SAME]),
            ("POST", &[("host", "localhost:9152"), ("origin", "http://localhost:9152"), SAME]),
            ("POST", &[HOST, ("origin", "null"), SAME]),
            ("POST", &[HOST, SAME]),
        ] {
            assert_eq!(ask(method, "/TOKEN/", fields), Ok(()), "{method} {fields:?}");
        }
        assert_eq!(ask("GET", "/TOKEN/style.css?x", &[HOST]), Ok(()));
        assert_eq!(ask("GET", "http://127.0.0.1:9152/TOKEN/", &[HOST]), Ok(()));
    }

    #[test]
    fn names_that_lead_here_are_refused_before_anything_else() {
        for fields in [
            &[][..],
            &[("host", "evil.example")],
            &[("host", "evil.example:9152")],
            &[("host", "127.0.0.1")],
            &[("host", "127.0.0.1:9153")],
            &[("host", "localhost")],
            &[("host", "localhost.evil.example:9152")],
            &[("host", "127.0.0.1:9152.evil.example")],
            &[("host", "[::1]:9152")],
            &[HOST, ("host", "evil.example")],
        ] {
            assert_eq!(ask("GET", "/TOKEN/", fields), Err(Refusal::Host), "{fields:?}");
            assert_eq!(ask("GET", "/wrong/", fields), Err(Refusal::Host), "{fields:?}");
        }
        assert_eq!(ask("GET", "http://evil.example:9152/TOKEN/", &[HOST]), Err(Refusal::Host));
    }

    #[test]
    fn without_the_token_there_is_nothing() {
        for path in ["/", "/wrong/", "//TOKEN/", "/TOKEN0/", "/style.css", "/x/TOKEN/", "/%54OKEN/"] {
            for method in ["GET", "POST", "DELETE"] {
                assert_eq!(ask(method, path, &[HOST, OURS, SAME]), Err(Refusal::Token), "{method} {path}");
            }
        }
    }

    #[test]
    fn what_another_site_sends_is_refused_though_it_knows_the_token() {
        for (method, fields) in [
            ("GET", &[HOST, ("sec-fetch-site", "cross-site")][..]),
            ("GET", &[HOST, ("sec-fetch-site", "same-site")]), // another port of this machine
            ("GET", &[HOST, SAME, ("sec-fetch-site", "cross-site")]),
            ("POST", &[HOST]),
            ("POST", &[HOST, ("origin", "null")]),
            ("POST", &[HOST, ("origin", "null"), ("sec-fetch-site", "cross-site")]),
            ("POST", &[HOST, ("origin", "http://evil.example")]),
            ("POST", &[HOST, ("origin", "http://evil.example"), SAME]),
            ("POST", &[HOST, ("origin", "http://127.0.0.1:8000")]),
            ("POST", &[HOST, ("origin", "https://127.0.0.1:9152")]),
            ("POST", &[HOST, ("origin", "http://127.0.0.1:9152.evil.example")]),
            ("POST", &[HOST, OURS, ("sec-fetch-site", "cross-site")]),
            ("POST", &[HOST, OURS, ("sec-fetch-site", "none")]),
            ("POST", &[HOST, OURS, ("origin", "http://evil.example")]),
        ] {
            assert_eq!(ask(method, "/TOKEN/", fields), Err(Refusal::Site), "{method} {fields:?}");
        }
    }

    #[test]
    fn the_entrance_is_open_to_whoever_has_the_token() {
        let other = ("sec-fetch-site", "cross-site");
        assert_eq!(ask("GET", "/TOKEN/enter", &[HOST, other]), Ok(()));
        assert_eq!(ask("POST", "/TOKEN/enter", &[HOST, other]), Err(Refusal::Site));
        assert_eq!(ask("GET", "/TOKEN/enter/", &[HOST, other]), Err(Refusal::Site));
        assert_eq!(ask("GET", "/wrong/enter", &[HOST, other]), Err(Refusal::Token));
    }

    #[test]
    fn other_methods_are_refused() {
        for method in ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
            assert_eq!(ask(method, "/TOKEN/", &[HOST, OURS, SAME]), Err(Refusal::Method), "{method}");
        }
    }
}
