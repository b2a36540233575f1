//! The app: what it knows, and the loop that looks, decides, and has the [`keeper`] start and end the exit bridge.

mod keeper;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eebt_bridge::status::{Totals, WayIn};
use eebt_page::forms::Last;
use eebt_proto::causes;
use jiff::{Timestamp, Zoned};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::checkup::{Checkups, Health};
use crate::config::Config;
use crate::engine::Tried;
use crate::health::Question;
use crate::log::Log;
use crate::machine::{self, MachineError};
use crate::page::Said;
use crate::receipt::Receipt;
use crate::rules::{Decision, Governor, Reason, Standing};
use crate::served::{Served, ServedError};
use crate::settings::{Settings, SettingsError, Switch};
use crate::sources::{Facts, Seen};
use crate::usage::{Usage, UsageError};
use keeper::Keeper;

/// How often it looks and decides.
const TICK: Duration = Duration::from_secs(1);

/// How long the first look at the machine may take.
const FIRST_LOOK: Duration = Duration::from_secs(30);

/// What the exit bridge is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    #[default]
    Resting,
    /// It is on its way into Tor.
    Starting,
    /// People can come.
    Serving,
    /// It takes nothing new, and lets what is open end.
    Draining,
}

/// What is known now.
pub struct State {
    /// What the owner chose.
    pub settings: Settings,
    /// Of the machine.
    pub facts: Facts,
    /// What is to be done.
    pub decision: Decision,
    /// What is being done.
    pub phase: Phase,
    /// How far the exit bridge is on its way into Tor.
    pub way_in: WayIn,
    /// It is on its way for longer than usual.
    pub late: bool,
    /// Since the exit bridge was started.
    pub totals: Totals,
    /// Why the last one ended by itself, if it did.
    pub error: Option<String>,
    /// The last decisions.
    pub log: Log,
    /// What was carried.
    pub usage: Usage,
    /// It could not be written the last time.
    pub unwritten: bool,
    /// When it served, and who saw it.
    pub served: Served,
    /// The address and its checks.
    pub health: Health,
    /// The owner's test of this home: when, and what came of it.
    pub home: Home,
}

impl State {
    /// What it does now, in words: "paused: on battery".
    pub fn words(&self) -> String {
        match (self.phase, self.decision) {
            (Phase::Serving, _) => "serving".into(),
            (Phase::Draining, Decision::Rest(reason)) => format!("ending: {reason}"),
            (Phase::Draining, Decision::Serve) => "ending, to start anew".into(),
            (Phase::Resting, Decision::Rest(_)) => self.decision.to_string(),
            (Phase::Resting, Decision::Serve) if self.error.is_some() => {
                "the exit bridge ended, and is tried again".into()
            }
            (Phase::Resting | Phase::Starting, _) if self.way_in.percent < 100 => {
                "on its way into Tor".into()
            }
            (Phase::Resting | Phase::Starting, _) => "making itself known in Tor".into(),
        }
    }
}

/// The owner's test of this home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Not made yet.
    #[default]
    Untried,
    /// Wanted, or under way.
    Wanted,
    /// Made. Nothing was tried where there was no way to ourselves.
    Tried(Timestamp, Vec<Tried>),
}

/// The app, shared by its loop and its page.
pub struct App {
    state_dir: PathBuf,
    config: Config,
    state: Mutex<State>,
    changed: Notify,
    last: Last<Said>,
    /// Bytes carried since the start, both ways, for who looks at the line.
    carried: Arc<AtomicU64>,
}

/// Why the app can't start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The owner's choices.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What was carried.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// When it served.
    #[error(transparent)]
    Served(#[from] ServedError),
}

impl App {
    /// With what the state folder has. Nothing runs yet.
    ///
    /// # Errors
    /// See [`AppError`].
    pub fn new(config: Config, state_dir: &Path) -> Result<Self, AppError> {
        let state = State {
            settings: Settings::load(state_dir)?,
            facts: Facts::default(),
            decision: Decision::Rest(Reason::NoConsent),
            phase: Phase::Resting,
            way_in: WayIn::default(),
            late: false,
            totals: Totals::default(),
            error: None,
            log: Log::load(state_dir),
            usage: Usage::load(state_dir, Zoned::now().date())?,
            unwritten: false,
            served: Served::load(state_dir)?,
            health: Health::load(state_dir),
            home: Home::Untried,
        };
        Ok(Self {
            state_dir: state_dir.to_owned(),
            config,
            state: Mutex::new(state),
            changed: Notify::new(),
            last: Last::default(),
            carried: Arc::default(),
        })
    }

    /// What is known now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is said of the last form.
    pub fn last(&self) -> &Last<Said> {
        &self.last
    }

    /// Bytes carried since the start, both ways.
    pub fn carried(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.carried)
    }

    /// Are there directories by which people could find this home?
    pub fn has_directories(&self) -> bool {
        !self.config.directories.is_empty()
    }

    /// The configuration file, where one was named.
    pub fn config_file(&self) -> Option<&Path> {
        self.config.file.as_deref()
    }

    /// Changes what the owner chose, writes it, and acts by it at once.
    ///
    /// # Errors
    /// See [`SettingsError`]; nothing is changed then.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) -> Result<(), SettingsError> {
        let mut state = self.state();
        let mut settings = state.settings.clone();
        change(&mut settings);
        settings.check()?;
        settings.save(&self.state_dir)?;
        state.settings = settings;
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Turns the main switch. Off holds at once, even where it can't be written down.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn switch(&self, to: Switch) -> Result<(), SettingsError> {
        let switched = self.change(|settings| settings.switch = to);
        if switched.is_err() && to != Switch::On {
            self.state().settings.switch = to;
            self.changed.notify_one();
        }
        switched
    }

    /// A statement of all times in which this home served.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn receipt(&self) -> Result<Receipt, MachineError> {
        machine::receipt(&self.state_dir, Timestamp::MIN, Timestamp::MAX)
    }

    /// Has this home tried as soon as it serves.
    pub fn want_home_tried(&self) {
        self.state().home = Home::Wanted;
        self.changed.notify_one();
    }

    /// Does what the rules say, until `shutdown`; then drains.
    pub async fn run(&self, mut seen: watch::Receiver<Seen>, shutdown: CancellationToken) {
        // Nothing is decided before the machine was looked at.
        tokio::select! {
            _changed = seen.changed() => {}
            () = tokio::time::sleep(FIRST_LOOK) => {}
            () = shutdown.cancelled() => {}
        }
        let mut keeper = Keeper::default();
        let (mut governor, mut checkups) = (Governor::default(), Checkups::default());
        while !shutdown.is_cancelled() {
            let now = Zoned::now();
            let decision = self.decide(&mut governor, seen.borrow_and_update().facts(Instant::now()), &now);
            keeper.step(self, decision, &now).await;
            self.check_up(&mut checkups, decision, now.timestamp()).await;
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.changed.notified() => {}
                () = shutdown.cancelled() => {}
            }
        }
        while keeper.has_exit_bridge() {
            keeper.step(self, Decision::Rest(Reason::Off), &Zoned::now()).await;
            tokio::time::sleep(TICK / 10).await;
        }
        self.save(0);
    }

    /// By what is known of the machine; nothing, when nobody can look at it.
    fn decide(&self, governor: &mut Governor, facts: Option<&Facts>, now: &Zoned) -> Decision {
        let mut state = self.state();
        if state.unwritten && state.phase == Phase::Resting {
            state.unwritten = state.usage.save(0).is_err();
        }
        let standing = Standing {
            cap: state.usage.cap(&state.settings.limits, now.date()),
            listed: state.health.is_listed(),
            unwritten: state.unwritten,
            blind: facts.is_none(),
        };
        // Who agrees now agrees for this line, as far as it was ever known.
        let unknown = || Facts { line: state.facts.line.clone(), ..Facts::default() };
        state.facts = facts.cloned().unwrap_or_else(unknown);
        let decision = governor.decide(&state.settings, &state.facts, standing, now);
        state.decision = decision;
        if state.log.note(now.timestamp(), decision) {
            tracing::info!("{decision}");
        }
        decision
    }

    /// Has the address checked when that is due, unless the line is to be left alone.
    async fn check_up(&self, checkups: &mut Checkups, decision: Decision, now: Timestamp) {
        if self.config.block_lists.is_empty() && self.config.canaries.is_empty() {
            return;
        }
        if let Some(checked) = checkups.done(now).await {
            self.state().health.note(&self.state_dir, checked);
        }
        let due = {
            let mut state = self.state();
            let wanted = !matches!(decision, Decision::Rest(reason) if reason.is_about_the_line());
            if wanted {
                state.health.doubt(&self.state_dir, now);
            }
            checkups.due(&state.health, now).filter(|_| wanted)
        };
        if let Some(address) = due {
            checkups.begin(self.question(address));
        }
    }

    fn question(&self, address: IpAddr) -> Question {
        // The exit bridge's settings were checked at the start.
        let bridge: eebt_bridge::Config = self.config.bridge.clone().try_into().unwrap_or_default();
        Question {
            address,
            block_lists: self.config.block_lists.clone(),
            canaries: self.config.canaries.clone(),
            source: bridge.egress_address,
            resolver: bridge.resolver,
            state_dir: self.state_dir.join("check"),
            network: bridge.network,
            tor: bridge.tor,
        }
    }

    /// Writes what was carried, with what may be carried until it is written again.
    fn save(&self, ahead: u64) {
        let mut state = self.state();
        let saved = state.usage.save(ahead);
        state.unwritten = saved.is_err();
        if let Err(error) = saved {
            tracing::warn!(error = causes(&error), "what was carried can't be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{CONSENT, Consent};
    use crate::usage::{Cap, Day};
    use std::collections::BTreeMap;

    fn app(dir: &Path) -> App {
        let app = App::new(Config::default(), dir).unwrap();
        let consent = Some(Consent { at: Timestamp::UNIX_EPOCH, version: CONSENT });
        app.change(|settings| settings.consent = consent).unwrap();
        app
    }

    /// What a home machine is like, minute by minute. A laptop: on battery on Wednesday, elsewhere on Thursday.
    fn facts(now: &Zoned, idle: Duration) -> Facts {
        use jiff::civil::Weekday;
        let (day, hour) = (now.weekday(), now.hour());
        Facts {
            idle: Some(idle),
            elsewhere: None,
            line: None,
            on_battery: Some(day == Weekday::Wednesday && (10..14).contains(&hour)),
            metered: Some(day == Weekday::Thursday && (8..18).contains(&hour)),
            captive_portal: Some(day == Weekday::Thursday && hour == 8),
            vpn: Some(day == Weekday::Friday && hour == 9),
            full_screen: Some(hour == 21),
            // A backup at three.
            other_traffic: Some(if hour == 3 && now.minute() < 30 { 4_000_000 } else { 20_000 }),
        }
    }

    /// Is somebody at the machine? On working days from 17 to 21, and the film after that without a key pressed; on other days
    /// from 10 to 12.
    fn is_used(now: &Zoned) -> bool {
        match now.weekday().to_monday_zero_offset() {
            0..5 => (17..21).contains(&now.hour()),
            _ => (10..12).contains(&now.hour()),
        }
    }

    #[test]
    fn a_week_of_decisions_follows_the_owners_life() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        app.change(|settings| settings.limits.day_mb = Some(2_200)).unwrap();
        // From a Monday on; on the Sunday clocks go back by an hour.
        let mut now: Zoned = "2026-10-19T00:00:00[Europe/Stockholm]".parse().unwrap();
        let end: Zoned = "2026-10-26T00:00:00[Europe/Stockholm]".parse().unwrap();
        let (mut governor, mut idle) = (Governor::default(), Duration::from_secs(3600));
        let mut minutes: BTreeMap<String, u32> = BTreeMap::new();
        let mut changes = 0;
        let mut last = None;
        while now < end {
            idle = if is_used(&now) { Duration::ZERO } else { idle + Duration::from_secs(60) };
            let decision = app.decide(&mut governor, Some(&facts(&now, idle)), &now);
            // 50 kB a second while it serves, so that the day's cap is reached at six.
            if decision == Decision::Serve {
                app.state().usage.add(now.date(), Day { down: 50_000 * 60, seconds: 60, ..Day::default() });
                assert!(idle >= Duration::from_secs(300) && now.hour() < 7, "{now}");
            }
            *minutes.entry(decision.to_string()).or_default() += 1;
            changes += u32::from(last.replace(decision) != Some(decision));
            now = now.saturating_add(Duration::from_secs(60));
        }
        // A week has 10080 minutes, and this one an hour more.
        assert_eq!(minutes.values().sum::<u32>(), 10_140);
        // The cap: 1 GB carried, 333 minutes and a third. Before it comes the backup; behind it nothing.
        assert_eq!(minutes["serving"], 7 * 334);
        assert_eq!(minutes["paused: the line is busy with your own things"], 7 * 30);
        let capped = minutes["paused: it has carried as much as you allow for a day"];
        assert_eq!(capped, 10_140 - 7 * (334 + 30));
        let limits = app.state().settings.limits;
        assert_eq!(app.state().usage.cap(&limits, now.date()), None, "a new day");
        assert!((20..60).contains(&changes), "{changes}: {minutes:?}");
        let log: Vec<_> = app.state().log.entries().copied().collect();
        assert!(log.iter().any(|entry| entry.decision == Decision::Rest(Reason::Cap(Cap::Day))));
        assert!(log.iter().zip(log.iter().skip(1)).all(|(newer, older)| newer.at > older.at));
    }

    #[test]
    fn without_a_cap_each_reason_has_its_hours() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        app.change(|settings| settings.limits.day_mb = None).unwrap();
        let mut now: Zoned = "2026-11-23T00:00:00[Europe/Stockholm]".parse().unwrap();
        let (mut governor, mut idle) = (Governor::default(), Duration::from_secs(3600));
        let mut minutes: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..7 * 24 * 60 {
            idle = if is_used(&now) { Duration::ZERO } else { idle + Duration::from_secs(60) };
            let decision = app.decide(&mut governor, Some(&facts(&now, idle)), &now);
            *minutes.entry(decision.to_string()).or_default() += 1;
            now = now.saturating_add(Duration::from_secs(60));
        }
        for (text, expected) in [
            ("paused: on battery", 4 * 60),
            ("paused: this network wants a log-in first", 60),
            ("paused: this line is metered", 9 * 60),
            ("paused: a VPN is on, and its address is not yours to lend", 60),
            // On five days for four hours and on two for two; and each time for the four minutes until it counts as idle,
            // of which the film has those of working days. On Thursday the line is metered for one of the hours.
            ("paused: you are using the computer", 5 * 240 + 2 * (120 + 4) + 5 * 4 - 60),
            ("paused: a program fills the screen", 7 * 60 - 5 * 4),
            ("paused: the line is busy with your own things", 7 * 30),
        ] {
            assert_eq!(minutes[text], expected, "{text}: {minutes:?}");
        }
        assert_eq!(minutes.values().sum::<u32>(), 7 * 24 * 60);
    }

    #[test]
    fn it_rests_while_what_it_carries_cannot_be_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        let (mut governor, now) = (Governor::default(), Zoned::now());
        let idle = Facts { idle: Some(Duration::from_secs(3600)), ..Facts::default() };
        let mut decide = || app.decide(&mut governor, Some(&idle), &now);
        assert_eq!(decide(), Decision::Serve);
        // Nothing can be put where a folder with something in it is.
        let in_the_way = dir.path().join("usage.json/x");
        std::fs::create_dir_all(&in_the_way).unwrap();
        app.save(1);
        assert_eq!(decide(), Decision::Rest(Reason::Unwritten));
        std::fs::remove_dir_all(dir.path().join("usage.json")).unwrap();
        assert_eq!(decide(), Decision::Serve, "by itself");
    }

    #[test]
    fn who_cannot_look_at_the_machine_rests() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        app.change(|settings| settings.rules.idle_minutes = None).unwrap();
        let (mut governor, now) = (Governor::default(), Zoned::now());
        let charging = Facts { on_battery: Some(false), ..Facts::default() };
        assert_eq!(app.decide(&mut governor, Some(&charging), &now), Decision::Serve);
        assert_eq!(app.decide(&mut governor, None, &now), Decision::Rest(Reason::Blind));
        assert_eq!(app.state().facts, Facts::default());
    }

    #[test]
    fn a_choice_that_makes_no_sense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path());
        let before = app.state().settings.clone();
        assert!(app.change(|settings| settings.limits.clients = 0).is_err());
        assert_eq!(app.state().settings, before);
        app.change(|settings| settings.switch = Switch::Off).unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap().switch, Switch::Off);
    }
}
