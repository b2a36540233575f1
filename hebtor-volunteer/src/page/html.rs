//! The main page as HTML. maud escapes all that comes from outside; nothing here is put in unescaped.

use std::time::Duration;

use eebt_bridge::status::WayIn;
use eebt_page::html::{frame, refresh, table};
use eebt_page::text::{bytes, span};
use jiff::{Timestamp, ToSpan as _, Zoned};
use maud::{Markup, html};

use super::Said;
use crate::app::{Home, Phase, State};
use crate::categories::CATEGORIES;
use crate::checkup::Health;
use crate::config::Config;
use crate::engine::Outcome;
use crate::health::{Verdict, Way, is_listed};
use crate::machine;
use crate::rules::{Decision, Reason};
use crate::served::Served;
use crate::settings::{Hours, Leave, Limits, Rules, Settings, Switch, clock};
use crate::sources::Facts;
use crate::usage::on_the_line;

/// Days in the chart.
const CHART: i32 = 56;

/// The whole page.
pub(super) fn page(state: &State, said: Option<&Said>, live: bool, directories: bool, now: &Zoned) -> Markup {
    let inside = html! {
        header {
            h1 { "Exit bridge at home" }
            nav aria-label="Sections" {
                a href="#now" { "Now" } a href="#did" { "What it did" } a href="#home" { "Protection of your home" } a href="#address" { "Your address" }
                a href="#rules" { "When" } a href="#limits" { "How much" } a href="#leave" { "Where to" } a href="#log" { "Decisions" }
            }
            (refresh(live))
        }
        main {
            div #said role="status" tabindex="-1" { @if let Some(said) = said { p.said { (say(said)) } } }
            (now_section(state, directories, now))
            (did(state, now))
            (home(state, now))
            (address(state, now))
            (rules(&state.settings, &state.facts))
            (limits(&state.settings.limits))
            (leave(&state.settings.leave))
            (log(state, now))
        }
        footer {
            p { "This page comes from the app on this computer, and only this computer can open it. No site that people visit and no person \
                 is ever written down." }
            form method="post" action="end" { button { "End this app" } }
        }
    };
    frame("Exit bridge at home", live, inside)
}

/// A receipt, to be printed.
pub(super) fn receipt(lines: &[String]) -> Markup {
    let (title, rest) = lines.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    frame(title, false, html! { main { section { h1 { (title) } pre { (rest.join("\n")) } } } })
}

/// What came of the last form.
pub(super) fn say(said: &Said) -> Markup {
    html! {
        @match said {
            Said::Agreed(true) => "Thank you. It begins when the rules below let it.",
            Said::Agreed(false) => "Tick the box if you agree. Nothing runs until then.",
            Said::Switched(Switch::On) => "Switched on. It serves when the rules below let it.",
            Said::Switched(Switch::Off) => "Switched off. What is open may end within the time below.",
            Said::Switched(Switch::Paused(_)) => "Paused. It goes on by itself afterwards.",
            Said::Saved(what) => { "Your " (what) (if what.ends_with('s') && *what != "choice of sites" { " are" } else { " is" }) " saved, and hold from now on." }
            Said::Autostart(true) => "It starts when you log in, from now on.",
            Said::Autostart(false) => "It does not start by itself any more.",
            Said::Line => "This line counts as yours from now on.",
            Said::Trying => "Your home is being tried. It takes up to a minute, or until it serves; refresh then.",
            Said::Ending => "The app ends. Start it again from your menu, or with “hebtor-volunteer”.",
            Said::Refused(why) => { "That did not work: " (why) "." }
        }
    }
}

fn now_section(state: &State, directories: bool, now: &Zoned) -> Markup {
    let class = match state.phase {
        Phase::Serving => "dot serving",
        Phase::Starting => "dot starting",
        Phase::Draining => "dot draining",
        Phase::Resting => "dot",
    };
    let today = state.usage.day(now.date());
    let (limits, rules) = (&state.settings.limits, &state.settings.rules);
    html! {
        section aria-labelledby="now" {
            div.state {
                h2 #now { span class=(class) aria-hidden="true" {} (capital(&state.words())) }
                form.switch method="post" action="switch" role="group" aria-label="Main switch" {
                    input type="hidden" name="minutes" value="60";
                    @let on = state.settings.switch;
                    @for (value, text, pressed) in [
                        ("on", "On", on == Switch::On),
                        ("pause", "Pause for 1 hour", matches!(on, Switch::Paused(_))),
                        ("off", "Off", on == Switch::Off),
                    ] {
                        button name="to" value=(value) aria-pressed=(if pressed { "true" } else { "false" }) { (text) }
                    }
                }
            }
            @if let Decision::Rest(Reason::InUse) = state.decision {
                @if let Some(minutes) = state.settings.rules.idle_minutes {
                    p { "It begins when nobody has used the computer for " (minutes) " min." }
                }
            }
            @if let Decision::Rest(Reason::OtherLine) = state.decision {
                form method="post" action="line" { button { "This line is mine to lend, too" } }
            }
            @if let Decision::Rest(Reason::Paused(until)) = state.decision { p { "Until " (time(until, now)) "." } }
            form method="post" action="autostart" {
                @if machine::starts_at_log_in() { "It starts when you log in. " button name="to" value="off" { "No longer" } }
                @else { "It does not start by itself. " button name="to" value="on" { "Start it when I log in" } }
            }
            @if state.phase == Phase::Starting { (way_in(&state.way_in, state.late)) }
            @if let (Decision::Serve, Some(error)) = (state.decision, &state.error) { p.error { "The exit bridge ended: " (error) ". It is tried again." } }
            @if !directories {
                p.notice {
                    "No exit-bridge directory is configured, so nobody can find your address. Put one into the configuration file"
                    @if let Some(file) = Config::usual_file() { ", such as " code { (file.display()) } } ", and start the app again."
                }
            } @else if state.phase == Phase::Serving && state.totals.directories == 0 {
                p.notice { "No exit-bridge directory hands your address out yet, so nobody finds it. They are asked again and again." }
            }
            ul.fears {
                li { h3 { "My address" } p { "Lent while this says “Serving”, and not while it rests. " (state.totals.clients) " people now. " (standing(&state.health, now)) } }
                li { h3 { "The blame" } p { (lent(&state.served, now)) } }
                li { h3 { "My line" } p { (bytes(today.on_the_line())) " of " (cap(limits.day_mb)) " today, at most " (on_the_line(u64::from(limits.down_kbs + limits.up_kbs)) / 2) " kB/s each way." } }
                li { h3 { "My computer" } p { "At most " (limits.cpu_percent) " % of one processor" (if rules.battery { "; nothing on battery." } else { "." }) } }
                li { h3 { "Does it do anything?" } p { (people(today.people)) " and " (bytes(today.carried())) " carried today." } }
                li { h3 { "When I am here" } p { (if rules.idle_minutes.is_some() { "It takes nothing new, and rests within " } else { "You chose that it goes on. Else it rests within " }) (limits.drain_seconds) " s." } }
            }
        }
    }
}

fn way_in(way_in: &WayIn, late: bool) -> Markup {
    html! {
        @if late || way_in.blocked.is_some() {
            p.error {
                "It takes longer than usual, at " (way_in.percent) " % of the way" @if let Some(blocked) = &way_in.blocked { ": " (blocked) } ". "
                "Is this computer connected, and its clock right? Where a network blocks Tor, give Arti bridges: “bridge.tor” in the configuration file."
            }
        } @else if way_in.percent < 100 { p { (way_in.percent) " % of the way." } }
        @else { p { "This takes a minute or so." } }
    }
}

/// What is known against the address.
fn standing(health: &Health, now: &Zoned) -> String {
    match health.last() {
        None => "It is checked against block lists each day; not yet, so far.".into(),
        Some(_) if health.is_listed() => "Sites refuse it now: it is on a list, see below.".into(),
        Some(last) => format!("On no list that was asked, {}.", time(last.at, now)),
    }
}

/// When the address was lent last, and who can say so.
fn lent(served: &Served, now: &Zoned) -> Markup {
    html! {
        @match served.last() {
            None => "Your address was not lent so far. Once it was, a receipt shows when.",
            Some(last) => {
                "Lent last from " (time(last.from, now)) " to " (time(last.until, now))
                (if last.attestations.is_empty() { ". " } else { ", which directories signed. " })
                a href="receipt" { "The receipt" } " shows it."
            }
        }
    }
}

fn cap(mb: Option<u32>) -> String {
    mb.map_or_else(|| "no cap".to_owned(), |mb| bytes(u64::from(mb) * 1_000_000))
}

/// How many were helped, rounded: nobody's single visit is to be seen.
fn people(circuits: u64) -> String {
    match circuits {
        0 => "Nobody was helped".into(),
        1..10 => "A few people were helped".into(),
        n => format!("About {} people were helped", n / 10 * 10),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn time(at: Timestamp, now: &Zoned) -> String {
    let at = at.to_zoned(now.time_zone().clone());
    let format = if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    at.strftime(format).to_string()
}

fn did(state: &State, now: &Zoned) -> Markup {
    let today = now.date();
    let first = today.saturating_sub((CHART - 1).days());
    let all = state.usage.since(first);
    let days: Vec<_> = first.series(1.day()).take_while(|day| *day <= today).collect();
    let most = days.iter().map(|day| state.usage.day(*day).carried()).max().unwrap_or_default().max(1);
    html! {
        section aria-labelledby="did" {
            h2 #did { "What it did" }
            p {
                (people(all.people)) " in the last 8 weeks, in " (span(Duration::from_secs(all.seconds))) ": "
                (bytes(all.down)) " brought, " (bytes(all.up)) " sent."
            }
            svg.chart viewBox="0 0 560 100" preserveAspectRatio="none" role="img" aria-label={ "Carried each day since " (first) ", at most " (bytes(most)) } {
                line x1="0" y1="99.5" x2="560" y2="99.5" {}
                @for (index, day) in days.iter().enumerate() {
                    // At most 100, of a hundredth each.
                    @let height = state.usage.day(*day).carried() * 98 / most;
                    rect x=(index * 10 + 1) y=(99 - height) width="8" height=(height) { title { (day) ": " (bytes(state.usage.day(*day).carried())) } }
                }
            }
            p { a href="receipt" { "Receipt: when your address was lent" } }
            p.quiet { "If somebody asks, “hebtor-volunteer receipt FILE” writes a signed statement of when your address was lent, and of which \
                       directories saw that; with --pdf, to print." }
            @if state.settings.backed_up.is_none() {
                p.quiet { "Your exit bridge has an identity that directories know. Save a copy with “hebtor-volunteer backup FILE”." }
            }
        }
    }
}

fn home(state: &State, now: &Zoned) -> Markup {
    html! {
            section aria-labelledby="home" {
                h2 #home { "Protection of your home" }
                p { "Try it: the app goes through Tor to itself, as a stranger would, and asks for your router, this computer, and what else is \
                     private. All of it must be refused." }
                form method="post" action="try-home" { button { "Try to reach my router through me" } }
                @match &state.home {
                    Home::Untried => p.quiet { "Not tried since the app was started." },
                    Home::Wanted if state.phase == Phase::Serving => p { "Being tried now." },
                    Home::Wanted => p { "It is tried as soon as it serves." },
                    Home::Tried(at, tried) if tried.is_empty() => p.error { (time(*at, now)) ": there was no way through Tor to itself. Try again." },
                    Home::Tried(at, tried) => {
                        @let refused = tried.iter().filter(|one| one.outcome == Outcome::Refused).count();
                        p { b { (time(*at, now)) ": refused, " (refused) " of " (tried.len()) "." } }
                        (table("What was tried", html! {
    thead { tr { th scope="col" { "Place" } th scope="col" { "Asked for" } th scope="col" { "Outcome" } } }
                                tbody { @for one in tried { tr {
                                    th scope="row" { (one.place) } td { (one.target) }
                                    td { @match one.outcome {
                                        Outcome::Refused => "refused",
                                        Outcome::Reached => span.error { "reached: switch it off, and report this" },
                                        Outcome::Unclear => "no clear answer; try again",
                                    } }
                                } } }
    }))
                    }
                }
            }
        }
}

fn address(state: &State, now: &Zoned) -> Markup {
    let words = |verdict| match verdict {
        Verdict::Good => "nothing against it",
        Verdict::Bad => "bad",
        Verdict::Unclear => "no clear answer",
    };
    html! {
            section aria-labelledby="address" {
                h2 #address { "Your address" }
                p { "Once a day it is looked for in lists by which sites refuse visitors, directly and through Tor. When it is found there, this rests \
                     until it is gone from them." }
                @match (state.health.address, state.health.last()) {
                    (None, _) => p { "It is not known yet: an exit-bridge directory says it." },
                    (Some(address), None) => p { (address) ": not checked yet." },
                    (Some(address), Some(last)) => {
                        p { (address) ", " (time(last.at, now)) ": "
                            b { (if state.health.is_listed() { "listed" } else { "not listed" }) } "." }
                        (health_chart(&state.health))
                        (table("What was asked", html! {
    thead { tr { th scope="col" { "List or site" } th scope="col" { "Way" } th scope="col" { "Answer" } } }
                                tbody { @for answer in &last.answers { tr {
                                    th scope="row" { (answer.who) }
                                    td { (if answer.way == Way::Direct { "directly" } else { "through Tor" }) }
                                    td { @match (answer.canary, answer.way, answer.verdict) {
                                        (true, Way::Tor, Verdict::Bad) => "turns Tor away, as expected",
                                        (true, Way::Direct, Verdict::Bad) => "turns your address away",
                                        (_, _, verdict) => (words(verdict)),
                                    } }
                                } } }
    }))
                    }
                }
            }
        }
}

/// The last checks, a bar each: low where there was nothing against the address, high where it was listed.
fn health_chart(health: &Health) -> Markup {
    let checks: Vec<_> = health.checks.iter().rev().take(30).rev().collect();
    html! {
        svg.chart.small viewBox="0 0 300 40" preserveAspectRatio="none" role="img" aria-label="The last checks, oldest first" {
            line x1="0" y1="39.5" x2="300" y2="39.5" {}
            @for (index, check) in checks.iter().enumerate() {
                @let bad = is_listed(&check.answers);
                @let height = if bad { 38 } else { 8 };
                rect.bad[bad] x=(index * 10 + 1) y=(39 - height) width="8" height=(height) {
                    title { (check.at) ": " (if bad { "listed" } else { "not listed" }) }
                }
            }
        }
    }
}

fn tick(name: &str, on: bool, text: &str) -> Markup {
    html! { label { input type="checkbox" name=(name) value="yes" checked[on]; (text) } }
}

fn number(name: &str, value: u32, label: &str) -> Markup {
    html! { input type="number" name=(name) value=(value) min="0" required aria-label=(label); }
}

fn optional(name: &str, value: Option<u32>, usual: u32, before: &str, after: &str) -> Markup {
    html! {
        (tick(&format!("{name}_on"), value.is_some(), before)) " "
        (number(name, value.unwrap_or(usual), &format!("{before} ({after})"))) " " (after)
    }
}

fn rules(settings: &Settings, facts: &Facts) -> Markup {
    let rules = &settings.rules;
    let other_line = facts.line.as_deref().map(|line| !settings.is_for(Some(line)));
    let known = |fact: Option<bool>| match fact {
        Some(true) => "now: yes",
        Some(false) => "now: no",
        None => "can't be told here",
    };
    let hours = rules.hours.unwrap_or(Hours { from: 22 * 60, to: 7 * 60 });
    let usual = Rules::default();
    html! {
        section aria-labelledby="rules" {
            h2 #rules { "When it rests" }
            form method="post" action="rules" {
                p {
                    (optional("idle_minutes", rules.idle_minutes, usual.idle_minutes.unwrap_or(5), "unless nobody used the computer for", "min"))
                    span.quiet { " (" @match facts.idle { Some(idle) => { "now: " (span(idle)) } None => "can't be told here" } ")" }
                }
                @for (name, on, text, fact) in [
                    ("known_line", rules.known_line, "on a line that I did not agree for", other_line),
                    ("battery", rules.battery, "on battery", facts.on_battery),
                    ("metered", rules.metered, "on a metered line", facts.metered),
                    ("vpn", rules.vpn, "while a VPN is on", facts.vpn),
                    ("captive_portal", rules.captive_portal, "when the network wants a log-in", facts.captive_portal),
                    ("full_screen", rules.full_screen, "while a program fills the screen", facts.full_screen),
                ] {
                    p { (tick(name, on, text)) span.quiet { " (" (known(fact)) ")" } }
                }
                p {
                    (optional("other_traffic_kbs", rules.other_traffic_kbs, 500, "while the line carries for you more than", "kB/s"))
                    span.quiet { " (" @match facts.other_traffic { Some(n) => { "now: " (bytes(n)) "/s" } None => "can't be told here" } ")" }
                }
                p {
                    (tick("hours_on", rules.hours.is_some(), "except from")) " "
                    input type="time" name="from" value=(clock(hours.from)) aria-label="from"; " to "
                    input type="time" name="to" value=(clock(hours.to % 1440)) aria-label="to";
                }
                p { button { "Save rules" } }
            }
        }
    }
}

fn limits(limits: &Limits) -> Markup {
    let usual = Limits::default();
    html! {
        section aria-labelledby="limits" {
            h2 #limits { "How much it may take" }
            p.quiet { "Each byte passes your line twice: in and out again. Caps count it so." }
            form method="post" action="limits" {
                p { "Sites to people: " (number("down_kbs", limits.down_kbs, "sites to people, kB/s")) " kB/s; people to sites: "
                    (number("up_kbs", limits.up_kbs, "people to sites, kB/s")) " kB/s" }
                p { (optional("day_mb", limits.day_mb, usual.day_mb.unwrap_or_default(), "at most", "MB a day")) }
                p { (optional("month_mb", limits.month_mb, usual.month_mb.unwrap_or_default(), "at most", "MB a month")) }
                p { (number("clients", limits.clients, "people at once")) " people at once" }
                p { (number("cpu_percent", limits.cpu_percent, "percent of one processor")) " % of one processor; "
                    (number("memory_mib", limits.memory_mib, "MiB of memory")) " MiB for what waits to be sent" }
                p { "When it is to rest, what is open may go on for " (number("drain_seconds", limits.drain_seconds, "seconds")) " s" }
                p { button { "Save limits" } }
            }
        }
    }
}

fn leave(leave: &Leave) -> Markup {
    let some = !leave.only.is_empty();
    html! {
        section aria-labelledby="leave" {
            h2 #leave { "Where people may go from here" }
            form method="post" action="leave" {
                p { label { input type="radio" name="sites" value="all" checked[!some]; "all of the web (ports 80 and 443, nothing private)" } }
                p { label { input type="radio" name="sites" value="some" checked[some]; "only these kinds of sites:" } }
                fieldset {
                    legend { "Kinds of sites" }
                    @for category in CATEGORIES { p { (tick(category.name, leave.only.iter().any(|n| n == category.name), category.title)) } }
                }
                p { label for="block_list" { "A file of domains that are never visited" } br;
                    input #block_list name="block_list" value=(leave.block_list.as_ref().map(|p| p.display().to_string()).unwrap_or_default()); }
                p { label for="country" { "Tell directories this country (two letters, or nothing), for people who want an address there" } br;
                    input #country name="country" maxlength="2" value=(leave.country.map(String::from).unwrap_or_default()); }
                p { button { "Save choice of sites" } }
            }
        }
    }
}

fn log(state: &State, now: &Zoned) -> Markup {
    html! {
            section aria-labelledby="log" {
                h2 #log { "The last decisions" }
                (table("When, what, and why", html! {
    thead { tr { th scope="col" { "From" } th scope="col" { "Decision" } } }
                        tbody { @for entry in state.log.entries() { tr { td { (time(entry.at, now)) } td { (entry.decision) } } } }
    }))
            }
        }
}
