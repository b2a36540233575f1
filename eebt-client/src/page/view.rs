//! What the page shows, gathered at one moment.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use crate::bridges::{self, Now};
use crate::connect::{Another, Connector, Why};
use crate::route::{Mode, Route};
use crate::verdicts;
use crate::visits::{self, Notice};

/// Most sites that are shown, unless the person wants all.
const MAX_SITES: usize = 100;

/// What came of the last form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Chosen { pattern: String, route: Route },
    Another { host: String, outcome: Option<Another> },
    Forgotten(&'static str),
    Refused(String),
}

/// All of it.
pub(super) struct View {
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
    pub(super) mode: Mode,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) said: Option<Said>,
    pub(super) notices: Vec<Notice>,
    pub(super) sites: Vec<(visits::Shown, Why)>,
    pub(super) sites_left_out: usize,
    pub(super) bridges: Vec<(bridges::Shown, usize)>,
    pub(super) verdicts: Vec<verdicts::Shown>,
    pub(super) choices: Vec<(String, Route)>,
}

impl View {
    pub(super) fn gather(
        connector: &Connector,
        mode: Mode,
        listen: &[SocketAddr],
        said: Option<Said>,
        all: bool,
    ) -> Self {
        let now = Now::read();
        let mut sites = connector.visits().shown();
        let sites_left_out = if all { 0 } else { sites.len().saturating_sub(MAX_SITES) };
        sites.truncate(sites.len() - sites_left_out);
        let bridges = connector.bridges().shown(now);
        Self {
            now: now.instant,
            wall: now.wall,
            mode,
            listen: listen.to_vec(),
            said,
            notices: connector.visits().notices(),
            sites: sites.into_iter().map(|s| (connector.why(&s.site), s)).map(|(why, s)| (s, why)).collect(),
            sites_left_out,
            bridges: bridges
                .into_iter()
                .map(|b| (connector.circuits_to(b.id), b))
                .map(|(n, b)| (b, n))
                .collect(),
            verdicts: connector.verdicts().shown(now.wall),
            choices: connector.choices().all(),
        }
    }
}
