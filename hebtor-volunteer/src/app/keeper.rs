//! Keeps the exit bridge as it was decided: starts it, counts what it carries, ends it, and tries again when it ended by itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use eebt_proto::causes;
use jiff::Zoned;
use tokio::time::Instant;

use super::{App, Home, Phase};
use crate::engine::{Engine, EngineError, Rates, STOPPED, Start};
use crate::rules::Decision;
use crate::settings::Settings;
use crate::usage::Day;

/// How often what was carried is written, and for how long ahead.
const SAVE_EVERY: Duration = Duration::from_secs(10);
const AHEAD: Duration = Duration::from_secs(15);

/// Pauses after an exit bridge that ended by itself: the first one, doubled with each in a row, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Serving for so long makes up for earlier failures.
const WORKED: Duration = Duration::from_secs(60);

/// By then it has usually found its way into Tor.
const USUALLY_THERE: Duration = Duration::from_secs(90);

/// Keeps the exit bridge as it was decided.
#[derive(Default)]
pub(super) struct Keeper {
    engine: Option<Engine>,
    started: Option<Instant>,
    counted: Option<Instant>,
    saved: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
    /// With what the last one failed.
    failed_with: Option<Start>,
    trying_home: bool,
}

impl Keeper {
    /// Is there one, even if it is ending?
    pub(super) fn has_exit_bridge(&self) -> bool {
        self.engine.is_some()
    }

    /// Brings it nearer to what was decided, and takes in what is new of it.
    pub(super) async fn step(&mut self, app: &App, decision: Decision, now: &Zoned) {
        self.count(app, now);
        let (drain, spent) = {
            let state = app.state();
            let cap = state.usage.cap(&state.settings.limits, now.date());
            (state.settings.drain(), cap.is_some() || state.unwritten)
        };
        match (decision, &mut self.engine) {
            (Decision::Serve, None) => self.start(app).await,
            (Decision::Serve, Some(engine)) if !engine.is_draining() => match start_of(app) {
                Ok(with) if engine.adapt(&with).await => {}
                // It is started again once it has ended.
                _ => engine.drain(drain).await,
            },
            (Decision::Rest(_), Some(engine)) => {
                // What is open would go on past the cap, or uncounted.
                if spent {
                    engine.set_rates(STOPPED).await;
                }
                engine.drain(drain).await;
            }
            _ => {}
        }
        if let Some(engine) = &mut self.engine {
            engine.keep_time().await;
            let wanted = app.state().home == Home::Wanted;
            if wanted && engine.is_serving() && !self.trying_home {
                self.trying_home = true;
                engine.try_home().await;
            }
        }
        self.show(app);
    }

    async fn start(&mut self, app: &App) {
        let with = start_of(app);
        // Another choice of the owner's may have mended it.
        let same = with.as_ref().ok() == self.failed_with.as_ref();
        if same && self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.failed_with = with.as_ref().ok().cloned();
        let started = match with {
            Ok(with) => Engine::start(with).await.map_err(|error: EngineError| causes(&error)),
            Err(error) => Err(error),
        };
        match started {
            Ok(engine) => {
                self.engine = Some(engine);
                self.started = Some(Instant::now());
                self.trying_home = false;
            }
            Err(error) => self.failed(app, error),
        }
    }

    fn failed(&mut self, app: &App, error: String) {
        tracing::warn!(error, "the exit bridge ended by itself");
        self.failures += 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(10)).min(LONGEST_PAUSE);
        self.not_before = Some(Instant::now() + pause);
        app.state().error = Some(error);
    }

    /// Takes in what was carried, and whether it has ended.
    fn count(&mut self, app: &App, now: &Zoned) {
        let Some(engine) = &mut self.engine else { return };
        let new = engine.news();
        app.carried.fetch_add(new.up + new.down, Ordering::Relaxed);
        let moment = Instant::now();
        let serving = engine.is_serving();
        let seconds = match (serving, self.counted) {
            (true, Some(at)) => (moment - at).as_secs(),
            _ => 0,
        };
        if !serving || self.counted.is_none() || seconds > 0 {
            self.counted = serving.then_some(moment);
        }
        let mut state = app.state();
        let more = Day { up: new.up, down: new.down, seconds, people: new.clients_met, lost: 0 };
        if more != Day::default() {
            state.usage.add(now.date(), more);
        }
        if serving {
            state.error = None;
        }
        if let Some(tried) = engine.home() {
            state.home = Home::Tried(now.timestamp(), tried);
            self.trying_home = false;
        }
        // Who knows it already may come before we know that it can be reached.
        if engine.has_served() || engine.totals().clients_met > 0 {
            if let Some(address) = engine.address() {
                state.health.note_address(&app.state_dir, address, now.timestamp());
            }
            if let Err(error) = state.served.note(now.timestamp(), engine.attestations()) {
                tracing::warn!(error = causes(&error), "when it served can't be written");
            }
        }
        let limits = state.settings.limits;
        drop(state);
        if self.saved.is_none_or(|at| moment - at >= SAVE_EVERY) {
            self.saved = Some(moment);
            let per_second = f64::from(limits.up_kbs + limits.down_kbs) * 1000.0;
            // Some megabytes.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            app.save((per_second * AHEAD.as_secs_f64()) as u64);
        }
        if let Some(error) = engine.is_over() {
            let worked = self.started.is_some_and(|at| at.elapsed() >= WORKED);
            (self.engine, self.counted, self.saved) = (None, None, None);
            app.save(0);
            if let Err(error) = app.state().served.end(now.timestamp()) {
                tracing::warn!(error = causes(&error), "when it served can't be written");
            }
            if worked {
                self.failures = 0;
            }
            match error {
                Some(error) => self.failed(app, error),
                None => self.not_before = None,
            }
        }
    }

    fn show(&self, app: &App) {
        let mut state = app.state();
        state.phase = match &self.engine {
            None => Phase::Resting,
            Some(engine) if engine.is_draining() => Phase::Draining,
            Some(engine) if engine.is_serving() => Phase::Serving,
            Some(_) => Phase::Starting,
        };
        state.totals = self.engine.as_ref().map(Engine::totals).unwrap_or_default();
        let starts_since = self.started.filter(|_| state.phase == Phase::Starting);
        state.late = starts_since.is_some_and(|at| at.elapsed() >= USUALLY_THERE);
        let way_in = self.engine.as_ref().map(Engine::way_in);
        if way_in != Some(&state.way_in) {
            state.way_in = way_in.cloned().unwrap_or_default();
        }
    }
}

/// How an exit bridge is to be started now.
fn start_of(app: &App) -> Result<Start, String> {
    let state = app.state();
    let Settings { limits, leave, .. } = &state.settings;
    let path = |name: &str| toml::Value::from(app.state_dir.join(name).display().to_string());
    let mut config = app.config.bridge.clone();
    for (key, value) in [
        ("keys", path("keys")),
        ("state_dir", path("tor")),
        ("reach", vec![toml::Value::from("onion")].into()),
        ("lifetime", "7d".into()),
        ("attest", true.into()),
        ("drain", format!("{}s", limits.drain_seconds).into()),
    ] {
        config.insert(key.into(), value);
    }
    let directories: Vec<_> = app.config.directories.iter().map(|d| d.to_string().into()).collect();
    config.insert("directories".into(), toml::Value::Array(directories));
    if let Some(country) = leave.country {
        config.insert("country".into(), String::from(country).into());
    }
    let bounds = config.entry("limits").or_insert_with(|| toml::Table::new().into());
    let bounds = bounds.as_table_mut().ok_or("bridge.limits is no table")?;
    bounds.insert("rendezvous_circuits".into(), i64::from(limits.clients).into());
    bounds.insert("memory_mib".into(), i64::from(limits.memory_mib).into());
    // A router at home keeps some thousand connections in mind, all of them the owner's, too.
    let rate = |per_second: f64, burst: f64| {
        toml::Value::from(toml::Table::from_iter([
            ("per_second".into(), per_second.into()),
            ("burst".into(), burst.into()),
        ]))
    };
    for (key, most) in [
        ("streams", (16 * i64::from(limits.clients)).into()),
        ("streams_per_circuit", 64.into()),
        ("connects", 64.into()),
        ("total_new_targets", rate(20.0, 2000.0)),
        ("total_failed_connects", rate(2.0, 200.0)),
    ] {
        bounds.entry(key).or_insert(most);
    }
    let config = toml::to_string(&config).map_err(|error| error.to_string())?;
    let rates = Rates { up: f64::from(limits.up_kbs) * 1000.0, down: f64::from(limits.down_kbs) * 1000.0 };
    Ok(Start {
        config,
        only: leave.only.clone(),
        block_list: leave.block_list.clone(),
        block_list_changed: leave.block_list.as_ref().and_then(|path| path.metadata().ok()?.modified().ok()),
        cpu_percent: limits.cpu_percent,
        own_address: state.health.address,
        rates,
    })
}
