//! The page as HTML. maud escapes all that comes from outside; nothing here is put in unescaped.

use std::time::Duration;

use eebt_page::html::{frame, refresh, table};
use eebt_page::text::{bytes, plain, span};
use eebt_proto::directory::ReachName;
use maud::{Markup, html};

use super::help::help;
use super::view::{Said, View};
use crate::bridges::{self, Health, Source};
use crate::connect::{Another, Why};
use crate::route::{Mode, Route};
use crate::verdicts;
use crate::visits::{Notice, Shown, Way};

/// Most sites in the address bar that are named beside one verdict.
const MAX_PARTIES: usize = 3;

/// The whole page.
pub(super) fn page(view: &View, live: bool) -> Markup {
    let inside = html! {
        a.skip href="#sites" { "Skip to sites" }
        header {
            h1 { "Exit bridges" }
            p { (summary(view)) }
            nav aria-label="Sections" {
                a href="#sites" { "Sites" }
                a href="#exit-bridges" { "Exit bridges" }
                a href="#choices" { "Your choices" }
                a href="#verdicts" { "Sites that refuse Tor" }
                a href="#help" { "Help" }
            }
            (refresh(live))
        }
        main {
            div #said role="status" tabindex="-1" {
                @if let Some(said) = &view.said { p.said { (say(said)) } }
            }
            (notices(view))
            (sites(view))
            (exit_bridges(view))
            (choices(view))
            (verdicts(view))
            (help(&view.listen))
        }
        footer {
            p {
                "This page comes from the eebt-client on this machine, and only this machine can open it. What it shows \
                 is in memory and is forgotten an hour after its last use. Your choices are kept on disk."
            }
        }
    };
    frame("Exit bridges", live, inside)
}

fn summary(view: &View) -> Markup {
    let works = |b: &&(bridges::Shown, usize)| matches!(b.0.health, Health::Works { .. } | Health::Untried);
    let usable = view.bridges.iter().filter(works).count();
    html! {
        "Connected to Tor. "
        @match (view.bridges.len(), usable) {
            (0, _) => "No exit bridge is known. ",
            (all, 0) => { (all) " known, and none works now. " }
            (1, _) => "1 exit bridge is known. ",
            (all, usable) if all == usable => { (all) " exit bridges are known. " }
            (all, usable) => { (usable) " of " (all) " exit bridges can be used. " }
        }
        @match view.mode {
            Mode::Auto => "Sites are reached through Tor, and through an exit bridge where they turn Tor away.",
            Mode::Always => "All sites are reached through an exit bridge.",
            Mode::Never => "All sites are reached through Tor alone.",
            Mode::Rules => "Sites are reached as the rules of the configuration say.",
        }
        " What you choose below comes first."
    }
}

fn say(said: &Said) -> Markup {
    html! {
        @match said {
            Said::Chosen { pattern, route } => {
                @let site = plain(pattern);
                @match route {
                    Route::Tor => { (site) " is reached through Tor alone from now on." }
                    Route::ExitBridge => { (site) " is reached through an exit bridge from now on." }
                    Route::Auto => { "Your choice for " (site) " is forgotten." }
                }
                " Open connections to it have been ended; load the site again."
            }
            Said::Another { host, outcome } => {
                @let site = plain(host);
                @match outcome {
                    Some(Another::Moved { to, with_it }) => {
                        (site) " gets exit bridge " (to) " from now on, and sees another address: you may have to log in \
                        again. Load the site again."
                        @match with_it {
                            0 => {}
                            1 => " Another site shares its circuit and moves along.",
                            n => { " " (n) " other sites share its circuit and move along." }
                        }
                    }
                    Some(Another::NoOther) => {
                        "There is no other exit bridge for " (site) " that works and that it has not had. \
                        Ask once more to begin again with those that it had, or wait for new ones."
                    }
                    None => { (site) " is not reached through an exit bridge now. Choose “Exit bridge” for it first." }
                }
            }
            Said::Forgotten(what) => { "Forgotten: " (what) "." }
            Said::Refused(why) => { "That did not work: " (why) "." }
        }
    }
}

fn notices(view: &View) -> Markup {
    html! {
        section aria-label="Notices" aria-live="polite" {
            @for notice in &view.notices {
                div.notice {
                    p { (told(notice)) " " span.quiet { (span(view.now.saturating_duration_since(notice.at))) " ago" } }
                    form method="post" action="dismiss" {
                        button name="notice" value=(notice.id) {
                            "Dismiss" span.unseen { " the notice about " (plain(&notice.site.host)) }
                        }
                    }
                }
            }
            @if view.notices.len() > 2 {
                form method="post" action="dismiss" { button name="notice" value="all" { "Dismiss all notices" } }
            }
        }
    }
}

fn told(notice: &Notice) -> Markup {
    let Notice { site, lost, now, broke, .. } = notice;
    html! {
        strong { (plain(&site.host)) }
        @if let Some(party) = &site.first_party { @if *party != site.host { " (for " (plain(party)) ")" } }
        ": "
        @match now {
            None => { "the connection to exit bridge " (lost) " was lost while it was in use. What was being loaded broke off. \
                      The next connection takes one that works, and a log-in may have to be repeated." }
            Some(now) if now == lost => { "the connection to exit bridge " (lost) " was lost while it was in use, and works \
                      again. The site sees the same address." }
            Some(now) => {
                "exit bridge " (lost) " did not work any more"
                @if *broke { ", and what was being loaded broke off" }
                ". The site is reached through exit bridge " (now) " now. It sees another address: a log-in may have to be repeated."
            }
        }
    }
}

fn sites(view: &View) -> Markup {
    // In the order in which they were used last.
    let mut parties: Vec<&Option<String>> = Vec::new();
    for (shown, _) in &view.sites {
        if !parties.contains(&&shown.site.first_party) {
            parties.push(&shown.site.first_party);
        }
    }
    let apart = parties.iter().any(|party| party.is_some());
    html! {
        section aria-labelledby="sites" {
            h2 #sites { "Sites" }
            @if view.sites.is_empty() {
                p { "Nothing has gone through this client in the last hour. " a href="#help" { "How to set up a browser" } }
            } @else {
                p.quiet { "A choice takes effect at once: open connections to that site are ended, and the next ones go the way you chose." }
            }
            @for party in &parties {
                @if apart {
                    @match party {
                        Some(party) => h3 { (plain(party)) " " span.quiet { "in the address bar" } },
                        None => h3 { "Other connections" },
                    }
                }
                ul.sites {
                    @for (shown, why) in view.sites.iter().filter(|(s, _)| s.site.first_party == **party) {
                        li { (site(view, shown, why)) }
                    }
                }
            }
            @if view.sites_left_out > 0 {
                p { a href="./?all#sites" { "Show " (view.sites_left_out) " more" } }
            }
            @if !view.sites.is_empty() {
                form method="post" action="forget-visits" { button { "Forget sites without an open connection" } }
            }
        }
    }
}

fn site(view: &View, shown: &Shown, why: &Why) -> Markup {
    let host = plain(&shown.site.host);
    let chosen = match why {
        Why::Choice(pattern, route) if *pattern == shown.site.host => Some(*route),
        Why::Onion => None,
        _ => Some(Route::Auto),
    };
    let by_exit_bridge =
        chosen != Some(Route::Tor) && shown.ways.iter().any(|way| matches!(way, Way::ExitBridge(..)));
    html! {
        div.what {
            h4 { (host) }
            p.why { (reason(why, &shown.site.host)) }
            @if let Some(error) = &shown.error { p.error { "Last try: " (error) "." } }
        }
        dl {
            div { dt { (if shown.open > 0 { "Way" } else { "Last way" }) } dd { @if shown.ways.is_empty() { "none yet" } @for way in &shown.ways { (badge(view, *way)) } } }
            div { dt { "Open" } dd { (shown.open) } }
            div { dt { "Sent" } dd { (bytes(shown.up)) } }
            div { dt { "Received" } dd { (bytes(shown.down)) } }
            div { dt { "First used" } dd { (span(view.now.saturating_duration_since(shown.since))) " ago" } }
        }
        @if chosen.is_some() {
            div.act {
                form.switch method="post" action="choose" role="group" aria-label={ "Way to " (host) } {
                    input type="hidden" name="host" value=(shown.site.host);
                    @for (value, name, route) in WAYS {
                        button name="way" value=(value) aria-pressed=(if chosen == Some(*route) { "true" } else { "false" }) {
                            (name) span.unseen { " for " (host) }
                        }
                    }
                }
                @if by_exit_bridge {
                    form method="post" action="another" {
                        input type="hidden" name="host" value=(shown.site.host);
                        input type="hidden" name="party" value=(shown.site.first_party.as_deref().unwrap_or_default());
                        button { span.unseen { (host) ": " } "Still blocks me: another exit bridge" }
                    }
                }
            }
        }
    }
}

const WAYS: &[(&str, &str, Route)] = &[
    ("auto", "Automatic", Route::Auto),
    ("tor", "Tor", Route::Tor),
    ("exit-bridge", "Exit bridge", Route::ExitBridge),
];

fn reason(why: &Why, host: &str) -> Markup {
    html! {
        @match why {
            Why::Onion => "An onion service: always through Tor alone.",
            Why::Choice(pattern, route) => {
                "You chose " (if *route == Route::Tor { "Tor" } else { "an exit bridge" })
                @if pattern != host { " for " (plain(pattern)) }
                "."
            }
            Why::Rule => "A rule of the configuration decides.",
            Why::Mode(Mode::Always) => "Automatic: this client takes an exit bridge for all sites.",
            Why::Mode(_) => "Automatic: this client takes Tor for all sites without a rule or choice.",
            Why::Auto(Some(reason)) => { "Automatic: an exit bridge, for the site does not let Tor in: " (reason) "." }
            Why::Auto(None) => "Automatic: Tor, as long as the site does not turn it away.",
        }
    }
}

fn badge(view: &View, way: Way) -> Markup {
    html! {
        @match way {
            Way::Tor => span.way { "Tor" },
            Way::Onion => span.way { "onion service" },
            Way::ExitBridge(id, number) => {
                span.way.by-exit-bridge {
                    "exit bridge " (number)
                    @if let Some(country) = view.bridges.iter().find(|(b, _)| b.id == id).and_then(|(b, _)| b.country) {
                        ", " (country)
                    }
                }
            }
        }
    }
}

fn exit_bridges(view: &View) -> Markup {
    html! {
        section aria-labelledby="exit-bridges" {
            h2 #exit-bridges { "Exit bridges" }
            @if view.bridges.is_empty() {
                p { "None is known. Give the client a bridge line with --bridge, or ask a directory with --directory." }
            } @else {
                (table("Exit bridges that this client knows", html! {
                    thead { tr {
                        th scope="col" { "Number" } th scope="col" { "State" } th scope="col" { "Country" }
                        th scope="col" { "Reached by" } th scope="col" { "From" } th scope="col" { "Ends" }
                        th scope="col" { "Circuits" }
                    } }
                    tbody { @for (bridge, circuits) in &view.bridges { (exit_bridge(view, bridge, *circuits)) } }
                }))
                p.quiet { "Countries are what a directory says. An exit bridge sees what a Tor exit sees: which hosts you visit, \
                           and whatever is not encrypted." }
            }
        }
    }
}

fn exit_bridge(view: &View, bridge: &bridges::Shown, circuits: usize) -> Markup {
    let for_now =
        |until: std::time::Instant| span(until.saturating_duration_since(view.now) + Duration::from_secs(1));
    html! {
        tr {
            th scope="row" { (bridge.number) }
            td {
                @match bridge.health {
                    Health::Untried => "not tried yet",
                    Health::Works { since } => { "works, in use for " (span(view.now.saturating_duration_since(since))) }
                    Health::Failed { times: 1, until } => { "failed; left alone for " (for_now(until)) }
                    Health::Failed { times, until } => { "dead: failed " (times) " times in a row; left alone for " (for_now(until)) }
                    Health::Expired => "its time is over",
                }
            }
            td { @if let Some(country) = bridge.country { (country) } @else { "unknown" } }
            td { @match bridge.reach { ReachName::Circuit => "circuit", ReachName::Onion => "onion service" } }
            td { @match bridge.source { Source::Given => "you", Source::Found => "a directory" } }
            td {
                @match bridge.expires.map(|end| end.duration_since(view.wall)) {
                    None => "not known",
                    Some(Ok(left)) => { "in " (span(left)) }
                    Some(Err(_)) => "over",
                }
            }
            td { (circuits) }
        }
    }
}

fn choices(view: &View) -> Markup {
    html! {
        section aria-labelledby="choices" {
            h2 #choices { "Your choices" }
            form.add method="post" action="choose" {
                p {
                    label for="host" { "Site" }
                    input #host name="host" required maxlength="255" autocomplete="off" autocapitalize="none" spellcheck="false"
                        aria-describedby="host-help";
                }
                p {
                    label for="way" { "Way" }
                    select #way name="way" {
                        option value="exit-bridge" { "Exit bridge" }
                        option value="tor" { "Tor" }
                    }
                }
                p { button { "Choose" } }
                p.quiet #host-help { "Such as example.com, or *.example.com for that and everything below it." }
            }
            @if view.choices.is_empty() {
                p { "You have chosen nothing yet. Choices are kept on this machine, with the names of the sites, until you forget them." }
            } @else {
                (table("Sites for which you chose the way", html! {
                    thead { tr { th scope="col" { "Site" } th scope="col" { "Way" } th scope="col" { "Change" } } }
                    tbody {
                        @for (pattern, route) in &view.choices {
                            tr {
                                th scope="row" { (plain(pattern)) }
                                td { (if *route == Route::Tor { "Tor" } else { "exit bridge" }) }
                                td {
                                    form method="post" action="choose" {
                                        input type="hidden" name="host" value=(pattern);
                                        button name="way" value="auto" { "Forget" span.unseen { " the choice for " (plain(pattern)) } }
                                    }
                                }
                            }
                        }
                    }
                }))
                form method="post" action="forget-choices" { button { "Forget all choices" } }
            }
        }
    }
}

fn verdicts(view: &View) -> Markup {
    html! {
        section aria-labelledby="verdicts" {
            h2 #verdicts { "Sites that refuse Tor" }
            @if view.verdicts.is_empty() {
                p { "None is known to turn Tor away. When one does, that is remembered here for a while, and it is reached through an exit bridge at once, by those programs (in Tor Browser: for that site in the address bar) that met it." }
            } @else {
                (table("Sites that turned Tor away, and how", html! {
                    thead { tr {
                        th scope="col" { "Site" } th scope="col" { "Port" } th scope="col" { "Visited for" } th scope="col" { "Why" }
                        th scope="col" { "Believed for" } th scope="col" { "Change" }
                    } }
                    tbody {
                        @for verdict in &view.verdicts {
                            tr {
                                th scope="row" { (plain(&verdict.host)) }
                                td { (verdict.port) }
                                td { (visited_for(verdict)) }
                                td { (verdict.reason) }
                                td { (span(verdict.until.duration_since(view.wall).unwrap_or_default())) }
                                td {
                                    form method="post" action="forget-verdict" {
                                        input type="hidden" name="host" value=(verdict.host);
                                        input type="hidden" name="port" value=(verdict.port);
                                        button { "Forget" span.unseen { " that " (plain(&verdict.host)) " refuses Tor" } }
                                    }
                                }
                            }
                        }
                    }
                }))
                form method="post" action="forget-verdicts" { button { "Forget all" span.unseen { " sites that refuse Tor" } } }
            }
        }
    }
}

/// For which sites in the address bar it is known: each learns it for itself.
fn visited_for(verdict: &verdicts::Shown) -> String {
    let parties: Vec<String> = verdict.first_parties.iter().take(MAX_PARTIES).map(|p| plain(p)).collect();
    match verdict.first_parties.len().saturating_sub(MAX_PARTIES) {
        _ if parties.is_empty() => "not said".to_owned(),
        0 => parties.join(", "),
        more => format!("{}, and {more} more", parties.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visits::Site;
    use std::time::{Instant, SystemTime};

    const EVIL: &str = "\"><script>alert(1)</script>.example";

    fn view() -> View {
        let now = Instant::now();
        let site = Site { first_party: Some("party.example".into()), host: EVIL.into() };
        let shown = Shown {
            site: site.clone(),
            ways: vec![Way::Tor],
            open: 2,
            up: 1234,
            down: 5_600_000,
            since: now,
            used: now,
            error: Some(EVIL.into()),
        };
        let reason = Why::Auto(Some(EVIL.into()));
        View {
            now,
            wall: SystemTime::now(),
            mode: Mode::Auto,
            listen: vec![([127, 0, 0, 1], 9250).into()],
            said: Some(Said::Another { host: EVIL.into(), outcome: Some(Another::NoOther) }),
            notices: vec![Notice { id: 7, site, lost: 1, now: Some(2), broke: true, at: now }],
            sites: vec![(shown, reason)],
            sites_left_out: 3,
            bridges: Vec::new(),
            verdicts: vec![crate::verdicts::Shown {
                host: EVIL.into(),
                port: 443,
                first_parties: (0..5).map(|n| format!("{n}.party.example")).collect(),
                reason: EVIL.into(),
                until: SystemTime::now() + Duration::from_secs(100),
            }],
            choices: vec![(EVIL.into(), Route::Tor)],
        }
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let page = page(&view(), false).into_string();
        assert!(!page.contains("<script") && !page.contains("\">alert"), "{page}");
        assert!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() >= 8);
        for bad in [" onclick", "javascript:", "http-equiv", "style=\"", "src="] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(super::page(&view(), true).into_string().contains("http-equiv=\"refresh\" content=\"5\""));
    }

    #[test]
    fn it_tells_what_it_should() {
        let page = page(&view(), false).into_string();
        for told in [
            "party.example",
            "5.6 MB",
            "1.2 kB",
            "There is no other exit bridge",
            "exit bridge 1 did not work any more, and what was being loaded broke off",
            "through exit bridge 2 now",
            "Show 3 more",
            "127.0.0.1:9250",
            "No exit bridge is known",
            "<td>0.party.example, 1.party.example, 2.party.example, and 2 more</td>",
        ] {
            assert!(page.contains(told), "{told}");
        }
    }

    #[test]
    fn the_switch_shows_the_persons_choice_and_onion_services_have_none() {
        let pressed = |why: Why| {
            let mut view = view();
            view.sites[0].0.site.host = "a.example".into();
            view.sites[0].1 = why;
            let page = page(&view, false).into_string();
            let at = page.find("aria-pressed=\"true\"");
            at.map(|at| page[..at].rsplit("value=\"").next().unwrap().split('"').next().unwrap().to_owned())
        };
        assert_eq!(pressed(Why::Auto(None)).as_deref(), Some("auto"));
        assert_eq!(pressed(Why::Mode(Mode::Always)).as_deref(), Some("auto"));
        assert_eq!(pressed(Why::Choice("a.example".into(), Route::Tor)).as_deref(), Some("tor"));
        assert_eq!(
            pressed(Why::Choice("a.example".into(), Route::ExitBridge)).as_deref(),
            Some("exit-bridge")
        );
        assert_eq!(
            pressed(Why::Choice("*.example".into(), Route::Tor)).as_deref(),
            Some("auto"),
            "not its own"
        );
        assert_eq!(pressed(Why::Onion), None);
    }
}
