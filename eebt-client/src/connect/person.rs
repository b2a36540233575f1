//! What the person is told of a connector, and may ask of it.

use std::sync::Arc;
use std::time::SystemTime;

use super::Connector;
use crate::bridges::{BridgeId, Moved, Now};
use crate::choices::Choices;
use crate::route::{Mode, Route, is_onion, ruled};
use crate::visits::{Site, Visits};

/// What decides over the way to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is an onion service.
    Onion,
    /// The person's choice, for this pattern.
    Choice(String, Route),
    /// A rule.
    Rule,
    /// The mode, for all hosts alike.
    Mode(Mode),
    /// Whether it turns Tor away, and how it does.
    Auto(Option<String>),
}

/// What came of the wish for another exit bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Another {
    /// New streams take another one.
    Moved {
        /// Its number.
        to: usize,
        /// How many other sites move along, for they share a circuit.
        with_it: usize,
    },
    /// There is none that works and that was not tried.
    NoOther,
}

impl Connector {
    /// What the person chose for single sites.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// What goes where.
    pub fn visits(&self) -> &Arc<Visits> {
        &self.visits
    }

    /// How many circuits to an exit bridge take new streams.
    pub fn circuits_to(&self, id: BridgeId) -> usize {
        self.circuits.usable(id)
    }

    /// What decides over the way for `site`.
    pub fn why(&self, site: &Site) -> Why {
        let host = site.host.as_str();
        if is_onion(host) {
            return Why::Onion;
        }
        if let Some((pattern, route)) = self.choices.of(host) {
            return Why::Choice(pattern, route);
        }
        let by_rules = ruled(&self.rules, host).filter(|_| matches!(self.mode, Mode::Auto | Mode::Rules));
        match by_rules.unwrap_or_else(|| self.route(host)) {
            Route::Auto => {
                let listed = || "it is on a list of sites that turn Tor away".to_owned();
                let listed = self.blockers.contains(host).then(listed);
                Why::Auto(self.verdicts.reason(site, SystemTime::now()).or(listed))
            }
            _ if by_rules.is_some() => Why::Rule,
            _ => Why::Mode(self.mode),
        }
    }

    /// The person wants another exit bridge for a site: all who visit it get one for their new streams, and
    /// open ones to it end. `None` when nobody visits it through an exit bridge.
    pub fn another(&self, site: &Site) -> Option<Another> {
        let mut outcome: Option<Another> = None;
        let mut moved = Vec::new();
        for (group, port) in self.visits.users(site) {
            // Its other ports went along.
            if moved.contains(&group) {
                continue;
            }
            let wish = self.bridges().another(&group, port, Now::read());
            match wish {
                Moved::From(from, to) => {
                    self.circuits.leave(from, &group);
                    let sites = self.visits.moved(&group);
                    moved.push(group);
                    outcome = Some(Another::Moved {
                        to: self.bridges().ordinal(to),
                        with_it: sites.saturating_sub(1),
                    });
                }
                Moved::NoOther => outcome = outcome.or(Some(Another::NoOther)),
                Moved::HasNone => {}
            }
        }
        if matches!(outcome, Some(Another::Moved { .. })) {
            let party = &site.first_party;
            self.visits.cut(|other| other == site || (party.is_some() && other.first_party == *party));
        }
        outcome
    }
}
