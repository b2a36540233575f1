//! The page: what it does and why, what it may take, and the owner's switches.
//!
//! [`eebt_page`] decides who may open it, [`html`] writes it, [`consent`] has the text that the owner agrees to, [`parse`] reads
//! what the owner filled in.

mod consent;
mod html;
mod parse;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State as Shared_};
use axum::response::Html;
use axum::routing::get;
use axum::{Router, http::header};
use eebt_page::forms::{Fields, Last, Shared, form};
use eebt_page::{LocalPage, PlaceError};
use eebt_proto::causes;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Home, Phase};
use crate::config::{Config, DEFAULT_PAGE};
use crate::machine;
use crate::settings::{CONSENT, Consent, Settings, Switch};

/// How its address is printed.
pub const HOW: &str = "hebtor-volunteer open --print";

const MORE_STYLE: &str = include_str!("more.css");

/// What came of the last form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The owner agreed, or did not tick the box.
    Agreed(bool),
    /// The main switch.
    Switched(Switch),
    /// These settings were saved.
    Saved(&'static str),
    /// It starts at log-in, or no longer.
    Autostart(bool),
    /// This line may be lent, too.
    Line,
    /// The home is being tried.
    Trying,
    /// The app ends.
    Ending,
    /// Nothing was changed.
    Refused(String),
}

/// What forms and pages work with.
struct Door {
    app: Arc<App>,
    shutdown: CancellationToken,
}

impl Shared for Door {
    type Said = Said;

    fn refusal(said: &Said) -> Option<String> {
        match said {
            Said::Refused(why) => Some(why.clone()),
            _ => None,
        }
    }

    fn last(&self) -> &Last<Said> {
        self.app.last()
    }
}

/// What programs are told: `status.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `resting`, `starting`, `serving` or `draining`.
    pub phase: String,
    /// What was decided, and why: "paused: on battery".
    pub decision: String,
    /// What it does now, in words: the same, or how far it has come with it.
    pub now: String,
    /// Why it does not get on into Tor, as far as that is known.
    pub blocked: Option<String>,
    /// Did the owner agree?
    pub agreed: bool,
    /// People's circuits now.
    pub people: u64,
    /// Bytes carried today, both ways.
    pub carried_today: u64,
    /// Exit-bridge directories that hand this home out.
    pub directories: u64,
    /// Is the address on a list by which sites refuse visitors? Unknown before it was checked.
    pub listed: Option<bool>,
    /// Why the last exit bridge ended by itself, if it did.
    pub error: Option<String>,
    /// The last decisions, the newest in front: time and text.
    pub log: Vec<(Timestamp, String)>,
    /// The owner's test of this home, by outcome; none that was made.
    pub home: Option<BTreeMap<String, usize>>,
}

/// The page, with its port taken; not served yet.
pub struct Page(LocalPage);

impl Page {
    /// Takes the port, and keeps the address in the state folder.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(config: &Config, state_dir: &Path) -> std::io::Result<Self> {
        let mut page = LocalPage::bind(config.page, DEFAULT_PAGE, HOW).await?;
        page.keep(state_dir);
        Ok(Self(page))
    }

    /// Its whole address, for the owner's eyes only.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Serves it. Never returns. The owner's wish to end the app cancels `shutdown`.
    pub async fn run(self, app: Arc<App>, shutdown: CancellationToken) {
        let door = Arc::new(Door { app, shutdown });
        let router = Router::new()
            .route("/agree", form(agree))
            .route("/switch", form(switch))
            .route(
                "/rules",
                form(|door: &Door, fields| save(door, "rules", |s| parse::rules(&mut s.rules, fields))),
            )
            .route(
                "/limits",
                form(|door: &Door, fields| save(door, "limits", |s| parse::limits(&mut s.limits, fields))),
            )
            .route(
                "/leave",
                form(|door: &Door, fields| {
                    save(door, "choice of sites", |s| parse::leave(&mut s.leave, fields))
                }),
            )
            .route("/line", form(line))
            .route("/set", form(set))
            .route("/try-home", form(try_home))
            .route("/backed-up", form(backed_up))
            .route("/autostart", form(autostart))
            .route("/end", form(end))
            .route("/", get(page))
            .route("/receipt", get(receipt))
            .route("/status.json", get(status))
            .with_state(door);
        self.0.serve(router, MORE_STYLE).await;
    }
}

/// The address of the page of the app that runs with this state folder.
///
/// # Errors
/// See [`PlaceError`].
pub fn find(state_dir: &Path) -> Result<String, PlaceError> {
    eebt_page::find(state_dir, "hebtor-volunteer")
}

async fn page(Shared_(door): Shared_<Arc<Door>>, RawQuery(query): RawQuery) -> Html<String> {
    let live = query.as_deref() == Some("live");
    let said = door.last().said();
    let state = door.app.state();
    let page = match state.settings.agreed() {
        true => html::page(&state, said.as_ref(), live, door.app.has_directories(), &Zoned::now()),
        false => consent::page(said.as_ref()),
    };
    Html(page.into_string())
}

/// The receipt, to be printed.
async fn receipt(Shared_(door): Shared_<Arc<Door>>) -> Html<String> {
    let checked = door.app.receipt().map_err(|error| causes(&error));
    let checked = checked.and_then(|receipt| receipt.verify().map_err(|error| causes(&error)));
    let lines = checked.map_or_else(|error| vec![error], |verified| verified.lines());
    Html(html::receipt(&lines).into_string())
}

async fn status(Shared_(door): Shared_<Arc<Door>>) -> impl axum::response::IntoResponse {
    let state = door.app.state();
    let phase = match state.phase {
        Phase::Resting => "resting",
        Phase::Starting => "starting",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
    };
    let home = match &state.home {
        Home::Tried(_, tried) => {
            let mut counts = BTreeMap::new();
            for one in tried {
                *counts.entry(format!("{:?}", one.outcome).to_lowercase()).or_default() += 1;
            }
            Some(counts)
        }
        Home::Untried | Home::Wanted => None,
    };
    let status = Status {
        phase: phase.into(),
        decision: state.decision.to_string(),
        now: state.words(),
        blocked: state.way_in.blocked.clone(),
        agreed: state.settings.agreed(),
        people: state.totals.clients,
        carried_today: state.usage.day(Zoned::now().date()).carried(),
        directories: state.totals.directories,
        listed: state.health.last().map(|_| state.health.is_listed()),
        error: state.error.clone(),
        log: state.log.entries().map(|entry| (entry.at, entry.decision.to_string())).collect(),
        home,
    };
    // It is numbers and text, which are never refused.
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_string(&status).unwrap_or_default())
}

/// Changes settings, and says so.
fn save(
    door: &Door,
    what: &'static str,
    change: impl FnOnce(&mut Settings) -> Result<(), String>,
) -> Option<Said> {
    let mut slip = None;
    let saved = door.app.change(|settings| {
        let before = settings.clone();
        if let Err(error) = change(settings) {
            slip = Some(error);
            *settings = before;
        }
    });
    Some(match (slip, saved) {
        (Some(error), _) => Said::Refused(error),
        (None, Err(error)) => Said::Refused(causes(&error)),
        (None, Ok(())) => Said::Saved(what),
    })
}

/// What `hebtor-volunteer set` sends: all of it, or nothing.
fn set(door: &Door, fields: &Fields) -> Option<Said> {
    save(door, "choice", |settings| {
        for (key, value) in fields.iter() {
            *settings = settings.with(key, value).map_err(|error| causes(&error))?;
        }
        Ok(())
    })
}

fn agree(door: &Door, fields: &Fields) -> Option<Said> {
    if fields.get("understood") != Some("yes") {
        return Some(Said::Agreed(false));
    }
    let line = door.app.state().facts.line.clone();
    let agreed = door.app.change(|settings| {
        settings.consent = Some(Consent { at: Timestamp::now(), version: CONSENT });
        line.into_iter().for_each(|line| settings.add_line(line));
    });
    Some(agreed.map_or_else(|error| Said::Refused(causes(&error)), |()| Said::Agreed(true)))
}

fn line(door: &Door, _: &Fields) -> Option<Said> {
    let line = door.app.state().facts.line.clone()?;
    let agreed = door.app.change(|settings| settings.add_line(line));
    Some(agreed.map_or_else(|error| Said::Refused(causes(&error)), |()| Said::Line))
}

fn switch(door: &Door, fields: &Fields) -> Option<Said> {
    let to = match fields.get("to")? {
        "on" => Switch::On,
        "off" => Switch::Off,
        "pause" => {
            let minutes = fields.get("minutes").unwrap_or("60").parse::<u32>().ok()?;
            Switch::Paused(Timestamp::now().checked_add(Duration::from_secs(u64::from(minutes) * 60)).ok()?)
        }
        _ => return None,
    };
    let switched = door.app.switch(to);
    Some(switched.map_or_else(
        |error| {
            Said::Refused(match to {
                Switch::On => causes(&error),
                Switch::Off | Switch::Paused(_) => {
                    format!("it holds until the app is started again, but {}", causes(&error))
                }
            })
        },
        |()| Said::Switched(to),
    ))
}

fn try_home(door: &Door, _: &Fields) -> Option<Said> {
    door.app.want_home_tried();
    Some(Said::Trying)
}

fn backed_up(door: &Door, _: &Fields) -> Option<Said> {
    save(door, "backup", |settings| {
        settings.backed_up = Some(Timestamp::now());
        Ok(())
    })
}

fn autostart(door: &Door, fields: &Fields) -> Option<Said> {
    let yes = match fields.get("to")? {
        "on" => true,
        "off" => false,
        _ => return None,
    };
    Some(
        machine::start_at_log_in(yes, door.app.config_file())
            .map_or_else(|error| Said::Refused(causes(&error)), |()| Said::Autostart(yes)),
    )
}

fn end(door: &Door, _: &Fields) -> Option<Said> {
    door.shutdown.cancel();
    Some(Said::Ending)
}
