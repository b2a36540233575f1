//! The process itself.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use eebt_bridge::limits::{Rate, Throttle, Way};
use eebt_bridge::status::Status;
use eebt_bridge::{Config, ExitBridge};
use eebt_proto::{HostRules, HostSet};
use eebt_tor::OnionConnector;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Event, Order, Rates, Start, home};
use crate::{categories, machine};

/// How often it looks at its counters and at the time that it took.
const LOOK: Duration = Duration::from_secs(1);

/// Smallest burst, in bytes: some cells. Else it is what a quarter of a second brings, so that a machine that is busy elsewhere for a
/// moment makes up for it.
const MIN_BURST: f64 = 16_384.0;

/// What it aims at when it took too much: this part of what it may take. What a byte costs is never the same, and it shall stay below.
const AIM: f64 = 0.9;

/// Runs it, until standard input ends or it is told to.
pub fn run() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&Event::Failed { error: format!("{error:#}") });
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    eebt_tor::raise_file_limit();
    machine::make_room();
    let (tokio, runtime) = eebt_tor::create_runtime(1)?;
    tokio.block_on(async move {
        let mut orders = orders();
        let Some(Order::Start(start)) = orders.recv().await else {
            anyhow::bail!("it was not told how to start")
        };
        let Start { config, only, block_list, block_list_changed: _, cpu_percent, own_address, rates } =
            *start;
        // Its words alone: beside them stands what it is about, and that may be the address of a directory.
        let said = |error: toml::de::Error| anyhow::Error::msg(error.message().to_owned());
        let mut config: Config = toml::from_str(&config).map_err(said)?;
        config.hosts = host_rules(&only, block_list.as_deref())?;
        config.own_addresses.extend(own_address);
        let bridge = ExitBridge::new(config)?;
        let (status, throttle) = (bridge.status(), bridge.throttle());
        let shutdown = CancellationToken::new();
        // The system ends all of us at once, and what is open may end in order.
        eebt_tor::stop_on_signal(shutdown.clone())?;
        // Set once it serves.
        let reach = watch::Sender::new(None::<([u8; 32], Arc<OnionConnector>)>);
        let (rates, wanted) = watch::channel(rates);

        let ready = |lines: &[eebt_proto::BridgeLine], connector: &Arc<OnionConnector>| {
            let onion = lines.iter().find_map(|line| match &line.reach {
                eebt_proto::Reach::Onion(onion) => Some(onion.service),
                eebt_proto::Reach::Circuit(_) => None,
            });
            reach.send_replace(onion.map(|service| (service, Arc::clone(connector))));
            tell(&Event::Serving);
        };
        let obey = async {
            while let Some(order) = orders.recv().await {
                match order {
                    Order::Rates(new) => drop(rates.send_replace(new)),
                    Order::Drain => shutdown.cancel(),
                    Order::TryHome => {
                        let reach = reach.borrow().clone();
                        if let Some((service, connector)) = reach {
                            tokio::spawn(async move {
                                tell(&Event::Home(home::try_all(&connector, service).await));
                            });
                        }
                    }
                    Order::Start(_) => {}
                }
            }
        };
        let (mut way_in, mut attestations) = (status.way_in(), status.attestations());
        // Both have their senders in `status`, which is here as long as this.
        let pass_on = async {
            loop {
                tokio::select! {
                    _changed = way_in.changed() => tell(&Event::WayIn(way_in.borrow_and_update().clone())),
                    _changed = attestations.changed() => {
                        tell(&Event::Attested(attestations.borrow_and_update().values().cloned().collect()));
                    }
                }
            }
        };
        let ended = tokio::select! {
            ended = bridge.run(runtime, shutdown.clone(), ready) => ended.map_err(anyhow::Error::from),
            // Who started it is gone, and nobody would end it.
            () = obey => Ok(()),
            () = pass_on => Ok(()),
            () = look(&status, &throttle, wanted, cpu_percent) => Ok(()),
        };
        tell(&Event::Totals(status.totals()));
        ended
    })
}

/// What comes on standard input, read by a thread of its own: a runtime would wait for the next line before it ends.
fn orders() -> mpsc::Receiver<Order> {
    let (sender, orders) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(order) = serde_json::from_str(&line) else { return };
            if sender.blocking_send(order).is_err() {
                return;
            }
        }
    });
    orders
}

/// Tells who started it.
fn tell(event: &Event) {
    let Ok(mut text) = serde_json::to_string(event) else { return };
    text.push('\n');
    // Who does not listen has gone, and standard input tells that.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn host_rules(only: &[String], block_list: Option<&Path>) -> anyhow::Result<HostRules> {
    use anyhow::Context as _;
    let blocked = match block_list {
        None => HostSet::default(),
        Some(path) => {
            let name = || format!("block_list: {}", path.display());
            std::fs::read_to_string(path).with_context(name)?.parse().with_context(name)?
        }
    };
    Ok(HostRules { allowed: categories::domains(only.iter().map(String::as_str)), blocked })
}

/// Tells what is counted, and keeps rates and processor time to what they may be. Never returns.
async fn look(status: &Status, throttle: &Throttle, mut wanted: watch::Receiver<Rates>, cpu_percent: u32) {
    let (mut told, mut spared) = (None, Spared::new(cpu_percent));
    let mut set = None;
    let processor = ProcessTime::now();
    loop {
        let now = Instant::now();
        let factor = spared.factor(processor.elapsed(), now);
        let rates = *wanted.borrow_and_update();
        if set != Some((rates, factor)) {
            set = Some((rates, factor));
            for (way, rate) in [(Way::Up, rates.up), (Way::Down, rates.down)] {
                let per_second = rate * factor;
                throttle.set(way, Rate { per_second, burst: (per_second / 4.0).max(MIN_BURST) }, now);
            }
        }
        let totals = status.totals();
        if told != Some(totals) {
            told = Some(totals);
            tell(&Event::Totals(totals));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _changed = wanted.changed() => {}
        }
    }
}

/// Slows down when it takes more of a processor than it may.
struct Spared {
    allowed: f64,
    factor: f64,
    last: Option<(Duration, Instant)>,
}

impl Spared {
    fn new(percent: u32) -> Self {
        Self { allowed: f64::from(percent) / 100.0, factor: 1.0, last: None }
    }

    /// The part of its rates that it may have now, from what it had of processors so far.
    fn factor(&mut self, had: Duration, now: Instant) -> f64 {
        let Some((before, at)) = self.last else {
            self.last = Some((had, now));
            return self.factor;
        };
        let passed = now.duration_since(at).as_secs_f64();
        if passed < LOOK.as_secs_f64() / 2.0 {
            return self.factor;
        }
        self.last = Some((had, now));
        let used = had.saturating_sub(before).as_secs_f64() / passed;
        // What it takes follows what it carries. Down at once, to a little below what is allowed; up slowly.
        self.factor = match used / self.allowed {
            over if over > 1.0 => (self.factor * AIM / over).max(0.01),
            near if near > AIM * AIM => self.factor,
            _ => (self.factor * 1.1).min(1.0),
        };
        self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_slows_down_until_it_takes_what_it_may_and_comes_back() {
        let mut spared = Spared::new(25);
        let (mut now, mut had) = (Instant::now(), Duration::ZERO);
        assert!((spared.factor(had, now) - 1.0).abs() < 1e-9);
        // At full speed it would take a whole processor.
        let mut used = 1.0;
        for _ in 0..10 {
            now += LOOK;
            had += LOOK.mul_f64(used);
            used = spared.factor(had, now);
        }
        assert!((0.2..=0.25).contains(&used), "{used}");
        for _ in 0..30 {
            now += LOOK;
            spared.factor(had, now);
        }
        assert!((spared.factor(had, now) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_block_list_that_cannot_be_read_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let error = host_rules(&[], Some(&file)).unwrap_err();
        assert!(format!("{error:#}").starts_with("block_list: "), "{error:#}");
        std::fs::write(&file, "a.example\nno domain\n").unwrap();
        assert!(format!("{:#}", host_rules(&[], Some(&file)).unwrap_err()).contains("line 2"));
        std::fs::write(&file, "a.example\n").unwrap();
        let rules = host_rules(&["search".into()], Some(&file)).unwrap();
        assert!(rules.lets_out(&"duckduckgo.com".parse().unwrap()));
        assert!(!rules.lets_out(&"a.example".parse().unwrap()));
    }
}
