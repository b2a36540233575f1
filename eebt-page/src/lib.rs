//! Local pages: on loopback, for the person's own browser only, by HTML that needs no JavaScript.
//!
//! [`guard`] decides who may ask, [`place`] is where a page is found, [`forms`] are what its buttons send, [`text`] writes
//! numbers for people, [`html`] has what all pages are put together from. [`LocalPage`] serves what a program wants to show.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod forms;
mod guard;
pub mod html;
mod place;
pub mod private_file;
pub mod text;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use place::{Kept, Place};
pub use place::{PlaceError, entrance, find};

/// Connections at once. A browser opens six.
const CONNECTIONS: usize = 32;

/// How long a browser may take to say what it wants, and keep a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest form that is read, in bytes.
const MAX_FORM: usize = 4 * 1024;

/// Where a browser comes in that was given a file and not an address; it leads on to the page.
const ENTRANCE: &str = "enter";

/// How all pages look; light and dark.
pub const STYLE: &str = include_str!("style.css");

/// A local page, with its port taken; not served yet.
pub struct LocalPage {
    listener: TcpListener,
    place: Place,
    kept: Option<Kept>,
    how: &'static str,
}

impl LocalPage {
    /// Takes the port. When that is the `usual` one and taken, another one: who wants the page asks for its address
    /// anyway, since that is new at each start. `how` is the command that prints the address.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(addr: SocketAddr, usual: SocketAddr, how: &'static str) -> std::io::Result<Self> {
        let listener = match TcpListener::bind(addr).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && addr == usual => {
                tracing::info!("the local page's usual port is taken; it has another one");
                TcpListener::bind((addr.ip(), 0)).await?
            }
            bound => bound?,
        };
        let place = Place::new(listener.local_addr()?);
        Ok(Self { listener, place, kept: None, how })
    }

    /// Where it is served, without what lets one in.
    pub fn addr(&self) -> SocketAddr {
        self.place.addr()
    }

    /// Its whole address, for the person's eyes only.
    pub fn url(&self) -> String {
        self.place.url()
    }

    /// Keeps its address in the state folder, as long as it runs. To be called before anybody is told that it is there.
    pub fn keep(&mut self, state_dir: &Path) {
        let kept = self.place.keep(state_dir).inspect_err(|error| {
            tracing::warn!(%error, "the address of the local page can't be kept; nobody can be told it later");
        });
        self.kept = kept.ok();
    }

    /// Serves what is in `inside`, and the style with `more` of the program's own. Never returns.
    pub async fn serve(self, inside: Router, more: &'static str) {
        let Self { listener, place, kept: _kept, how } = self;
        let style =
            get(async move || ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], [STYLE, more].concat()));
        let enter = get(async || Html("<!DOCTYPE html><meta http-equiv=\"refresh\" content=\"0; url=./\">"));
        let inside = inside.route(&format!("/{ENTRANCE}"), enter);
        let inside = inside.route("/style.css", style).layer(DefaultBodyLimit::max(MAX_FORM));
        let place = Arc::new(place);
        let router =
            Router::new().nest("/{token}/", inside).layer(middleware::from_fn(move |request, next| {
                let place = Arc::clone(&place);
                async move { guarded(&place, how, request, next).await }
            }));
        accept(listener, router).await;
    }
}

async fn guarded(place: &Place, how: &str, request: Request, next: Next) -> Response {
    let mut response = match guard::check(place, &request) {
        Ok(()) => next.run(request).await,
        Err(guard::Refusal::Token) => {
            let text = format!("not found\nhint: `{how}` prints the address of the local page\n");
            (axum::http::StatusCode::NOT_FOUND, text).into_response()
        }
        Err(refusal) => refusal.into_response(),
    };
    guard::seal(&mut response);
    response
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 * 1024);
            let serving = http.serve_connection(TokioIo::new(stream), service);
            // How it ended is the browser's business.
            let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::STYLE;

    /// Relative luminance of a colour (WCAG 2.2).
    fn luminance(colour: &str) -> f64 {
        let digits: Vec<u8> =
            colour.trim_start_matches('#').chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        let pairs: Vec<u8> = match digits[..] {
            [r, g, b] => vec![r * 17, g * 17, b * 17],
            _ => digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect(),
        };
        let linear = |part: u8| match f64::from(part) / 255.0 {
            low if low <= 0.04045 => low / 12.92,
            high => ((high + 0.055) / 1.055).powf(2.4),
        };
        0.2126 * linear(pairs[0]) + 0.7152 * linear(pairs[1]) + 0.0722 * linear(pairs[2])
    }

    #[test]
    fn text_and_edges_can_be_seen_in_light_and_dark() {
        for theme in STYLE.split("color-scheme").skip(1).map(|part| part.split('}').next().unwrap()) {
            if !theme.contains("--ink") {
                continue;
            }
            let colour = |name: &str| {
                luminance(theme.split(&format!("--{name}: ")).nth(1).unwrap().split(';').next().unwrap())
            };
            let contrast = |a: &str, b: &str| {
                let (a, b) = (colour(a), colour(b));
                (a.max(b) + 0.05) / (a.min(b) + 0.05)
            };
            for ground in ["ground", "card", "tint", "warn"] {
                assert!(contrast("ink", ground) >= 7.0, "ink on {ground}");
                assert!(contrast("quiet", ground) >= 4.5, "quiet on {ground}");
            }
            for (text, ground) in [("main", "ground"), ("main", "card"), ("on-main", "main"), ("bad", "card")]
            {
                assert!(contrast(text, ground) >= 4.5, "{text} on {ground}");
            }
            for (edge, ground) in [("edge", "card"), ("warn-line", "warn"), ("main", "tint")] {
                assert!(contrast(edge, ground) >= 3.0, "{edge} on {ground}");
            }
        }
        assert_eq!(STYLE.matches("--ink:").count(), 2, "both themes were looked at");
    }
}
