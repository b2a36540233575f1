//! The requests: the page, its style, and what its forms do.
//!
//! A form answers with "see the page": loading that again does nothing twice. What came of it is shown
//! there for a while, at the top, where the browser goes then.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use super::place::Place;
use super::view::{Said, View};
use super::{guard, html};
use crate::connect::Connector;
use crate::route::{Mode, Route};
use crate::visits::Site;

/// Longest form that is read, in bytes.
const MAX_FORM: usize = 4 * 1024;

/// How long it is said what came of the last form.
const SAID_FOR: Duration = Duration::from_secs(60);

const STYLE: &str = include_str!("style.css");

/// What the requests work with.
pub(super) struct Shared {
    pub(super) connector: Arc<Connector>,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) mode: Mode,
    pub(super) last: Mutex<Option<(Instant, Said)>>,
}

impl Shared {
    fn say(&self, said: Said) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
    }

    fn said(&self) -> Option<Said> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < SAID_FOR).map(|(_, said)| said.clone())
    }
}

pub(super) fn router(shared: Arc<Shared>, place: Arc<Place>) -> Router {
    let forms = Router::new()
        .route("/choose", form(choose))
        .route("/another", form(another))
        .route("/forget-choices", form(forget_choices))
        .route("/forget-verdict", form(forget_verdict))
        .route("/forget-verdicts", form(forget_verdicts))
        .route("/forget-visits", form(forget_visits))
        .route("/dismiss", form(dismiss));
    let page = forms
        .route("/", get(page))
        .route("/style.css", get(async || ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .with_state(shared);
    Router::new().nest("/{token}/", page).layer(middleware::from_fn(move |request, next| {
        let place = Arc::clone(&place);
        async move { guarded(&place, request, next).await }
    }))
}

async fn guarded(place: &Place, request: Request, next: Next) -> Response {
    let mut response = match guard::check(place, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    guard::seal(&mut response);
    response
}

async fn page(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Html<String> {
    let live = query.as_deref() == Some("live");
    let all = query.as_deref() == Some("all");
    let view = View::gather(&shared.connector, shared.mode, &shared.listen, shared.said(), all);
    Html(html::page(&view, live).into_string())
}

/// The fields of a form.
struct Fields(HashMap<String, String>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn site(&self) -> Option<Site> {
        let first_party = self.get("party").filter(|party| !party.is_empty()).map(str::to_owned);
        Some(Site { first_party, host: self.get("host")?.to_owned() })
    }
}

/// What a form does; `None` when its fields are not those that our page sends.
type Does = fn(&Shared, &Fields) -> Option<Said>;

/// A request that reads a form, does what it says, and leads back to the page.
fn form(does: Does) -> MethodRouter<Arc<Shared>> {
    post(async move |State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes| {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next() != Some("application/x-www-form-urlencoded") {
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "a form is expected\n").into_response();
        }
        let fields = Fields(form_urlencoded::parse(&body).into_owned().collect());
        match does(&shared, &fields) {
            Some(said) => {
                shared.say(said);
                (StatusCode::SEE_OTHER, [(header::LOCATION, "./#said")]).into_response()
            }
            None => (StatusCode::UNPROCESSABLE_ENTITY, "a field is missing or wrong\n").into_response(),
        }
    })
}

fn choose(shared: &Shared, fields: &Fields) -> Option<Said> {
    let route = match fields.get("way")? {
        "auto" => Route::Auto,
        "tor" => Route::Tor,
        "exit-bridge" => Route::ExitBridge,
        _ => return None,
    };
    let pattern = fields.get("host")?.trim();
    let choices = shared.connector.choices();
    let chosen = choices.choose(pattern, route);
    if matches!(chosen, Ok(_) | Err(crate::choices::ChoiceError::NotKept(_))) {
        // Programs keep connections for later requests: these would go on the old way.
        let below = pattern.strip_prefix("*.").map(crate::route::normal);
        let host = crate::route::normal(pattern);
        shared.connector.visits().cut(|site| match &below {
            Some(domain) => {
                site.host.strip_suffix(domain.as_str()).is_some_and(|s| s.is_empty() || s.ends_with('.'))
            }
            None => site.host == host,
        });
    }
    Some(match chosen {
        Ok(pattern) => Said::Chosen { pattern, route },
        Err(error) => Said::Refused(error.to_string()),
    })
}

fn another(shared: &Shared, fields: &Fields) -> Option<Said> {
    let site = fields.site()?;
    let outcome = shared.connector.another(&site);
    Some(Said::Another { host: site.host, outcome })
}

fn forget_choices(shared: &Shared, _: &Fields) -> Option<Said> {
    Some(match shared.connector.choices().forget_all() {
        Ok(()) => Said::Forgotten("all your choices"),
        Err(error) => Said::Refused(error.to_string()),
    })
}

fn forget_verdict(shared: &Shared, fields: &Fields) -> Option<Said> {
    shared.connector.verdicts().forget(fields.get("host")?, fields.get("port")?.parse().ok()?);
    Some(Said::Forgotten("that this site turned Tor away"))
}

fn forget_verdicts(shared: &Shared, _: &Fields) -> Option<Said> {
    shared.connector.verdicts().forget_all();
    Some(Said::Forgotten("which sites turned Tor away"))
}

fn forget_visits(shared: &Shared, _: &Fields) -> Option<Said> {
    shared.connector.visits().forget();
    Some(Said::Forgotten("all sites without an open connection"))
}

fn dismiss(shared: &Shared, fields: &Fields) -> Option<Said> {
    let id = match fields.get("notice")? {
        "all" => None,
        id => Some(id.parse().ok()?),
    };
    shared.connector.visits().dismiss(id);
    Some(Said::Forgotten("what you have read"))
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
