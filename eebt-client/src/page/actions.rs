//! The requests: the page, and what its forms do.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Html;
use axum::routing::get;
use eebt_page::forms::{Fields, Last, Shared as _, form};

use super::html;
use super::view::{Said, View};
use crate::connect::Connector;
use crate::route::{Mode, Route};
use crate::visits::Site;

/// What the requests work with.
pub(super) struct Shared {
    pub(super) connector: Arc<Connector>,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) mode: Mode,
    pub(super) last: Last<Said>,
}

impl eebt_page::forms::Shared for Shared {
    type Said = Said;

    fn refusal(said: &Said) -> Option<String> {
        match said {
            Said::Refused(why) => Some(why.clone()),
            _ => None,
        }
    }

    fn last(&self) -> &Last<Said> {
        &self.last
    }
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let forms = Router::new()
        .route("/choose", form(choose))
        .route("/another", form(another))
        .route("/forget-choices", form(forget_choices))
        .route("/forget-verdict", form(forget_verdict))
        .route("/forget-verdicts", form(forget_verdicts))
        .route("/forget-visits", form(forget_visits))
        .route("/dismiss", form(dismiss));
    forms.route("/", get(page)).with_state(shared)
}

async fn page(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Html<String> {
    let live = query.as_deref() == Some("live");
    let all = query.as_deref() == Some("all");
    let view = View::gather(&shared.connector, shared.mode, &shared.listen, shared.last().said(), all);
    Html(html::page(&view, live).into_string())
}

/// The site that a form is about.
fn site(fields: &Fields) -> Option<Site> {
    let first_party = fields.get("party").filter(|party| !party.is_empty()).map(str::to_owned);
    Some(Site { first_party, host: fields.get("host")?.to_owned() })
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
    let site = site(fields)?;
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
