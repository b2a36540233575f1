//! `eebt up` where machines cost money.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use data_encoding::HEXLOWER;
use eebt_provisioner::Fleet;
use eebt_provisioner::cloud::user_data::Program;
use eebt_provisioner::cloud::{MicroUsd, Query, Wanted};
use eebt_provisioner::instance::{Instance, Provider, expiry};
use eebt_provisioner::local::Settings;
use eebt_provisioner::raise::Failed;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::named;
use super::up::{report, view};
use crate::print::{Printer, Usage, View, rfc3339};

/// How many machines are bought at a time. The cloud's own limits are lower for long purchases.
const WORKERS: usize = 16;

#[derive(clap::Args)]
#[command(next_help_heading = "Machines of a cloud")]
pub struct Args {
    /// Where; several are used in turn
    #[arg(long, value_name = "REGION", value_delimiter = ',')]
    region: Vec<String>,
    /// What: the cheapest that can be had is bought
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "t3a.nano,t3.nano,t3a.micro,t3.micro,t2.nano,t2.micro"
    )]
    kinds: Vec<String>,
    /// Processors that the program was built for
    #[arg(long, default_value = "x86_64", value_parser = ["x86_64", "arm64"])]
    arch: String,
    /// System image [default: the newest Debian]
    #[arg(long, value_name = "ID")]
    image: Option<String>,
    /// Where machines fetch eebt-bridge from, by HTTPS [default: it is in the image]
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    program_url: String,
    /// Its SHA-256; machines run no other [default: that of the eebt-bridge here]
    #[arg(long, value_name = "HEX")]
    program_sha256: Option<String>,
    /// Let people log in with ssh
    #[arg(long)]
    ssh: bool,
    /// Most US dollars for one machine and hour
    #[arg(long, value_name = "USD")]
    max_price: Option<MicroUsd>,
    /// Most machines at once
    #[arg(long, value_name = "N", default_value_t = 20, env = "EEBT_MAX_COUNT")]
    max_count: usize,
    /// Most US dollars in 30 days, for machines (traffic comes on top)
    #[arg(long, value_name = "USD", default_value = "20", env = "EEBT_MAX_SPEND")]
    max_spend: MicroUsd,
}

/// What `eebt up` knows besides.
pub struct Common {
    pub provider: Provider,
    pub count: u16,
    pub lifetime: Duration,
    pub patience: Duration,
    pub is_dry_run: bool,
    pub is_agreed: bool,
    pub json: bool,
}

impl Args {
    /// Finds the mistakes that need no cloud to be seen.
    pub fn wanted(&self, common: &Common, settings: Settings) -> anyhow::Result<Wanted> {
        if self.region.is_empty() {
            let hint = "name at least one, such as --region eu-central-1";
            return Err(Usage::new("--region: not given", hint).into());
        }
        let sha256 = match &self.program_sha256 {
            Some(sum) => sum.clone(),
            None => sum_of(&settings.bridge)?,
        };
        let program = Program::new(&self.program_url, &sha256)
            .map_err(|what| Usage::new(what, "`sha256sum eebt-bridge` prints the sum"))?;
        let mut regions = self.region.clone();
        regions.sort();
        regions.dedup();
        let query = Query { kinds: self.kinds.clone(), arch: self.arch.clone(), image: self.image.clone() };
        Ok(Wanted {
            provider: common.provider,
            regions,
            query,
            count: common.count,
            max_count: self.max_count,
            max_spend: self.max_spend,
            max_price: self.max_price,
            program,
            ssh: self.ssh,
            settings,
        })
    }

    pub fn run(
        &self,
        common: &Common,
        settings: Settings,
        fleet: &Fleet,
        printer: &Printer,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<()> {
        let wanted = self.wanted(common, settings)?;
        printer.progress("asking what can be had ...");
        let offers = fleet.offers(&wanted)?;
        let times = |now| (now, expiry(now, common.lifetime));
        let (rows, cost) = fleet.reserve_machines(&wanted, &offers, times(SystemTime::now()), true)?;
        printer.wipe();
        say_plan(printer, common, &rows, cost);
        if common.is_dry_run {
            let plan = json!({ "provider": common.provider, "count": common.count, "regions": wanted.regions,
                "cost_usd": cost.plain(), "offers": offers });
            return if common.json { printer.json(&json!({ "plan": plan })) } else { Ok(()) };
        }
        if !common.is_agreed {
            agree(printer)?;
        }
        // Prices and money may have changed while somebody thought about it.
        let start = Instant::now();
        let (rows, _) = fleet.reserve_machines(&wanted, &offers, times(SystemTime::now()), false)?;

        let (mut bought, mut good, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        let (next, (sender, results)) = (AtomicUsize::new(0), mpsc::channel());
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(rows.len()) {
                let (sender, rows, next, wanted, offers) = (sender.clone(), &rows, &next, &wanted, &offers);
                scope.spawn(move || {
                    while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let _ = sender.send((row, fleet.buy(row, wanted, offers, interrupted)));
                    }
                });
            }
            drop(sender);
            for (row, result) in results {
                match result {
                    Ok(()) => bought.push(row),
                    Err(error) => failed.push((row, error)),
                }
                printer.progress(format_args!("{} of {} machines bought ...", bought.len(), rows.len()));
            }
        });
        let mut trouble = Ok(());
        let mut done = |row: &Instance, result: Result<String, Failed>| match result {
            Ok(line) => {
                if !common.json
                    && let Err(error) = printer.data(&line)
                {
                    trouble = Err(error);
                }
                let (after, region) = (start.elapsed().as_secs_f32(), row.region().unwrap_or_default());
                printer.say(format_args!("{} in {region} has started after {after:.1}s", row.id));
                good.push(row.id.clone());
            }
            Err(error) => failed.extend(rows.iter().find(|known| known.id == row.id).map(|row| (row, error))),
        };
        fleet.until_addressed(&bought, &wanted, common.patience, interrupted, &mut done)?;
        trouble.context("can't print")?;
        printer.wipe();
        if common.json {
            let good: Vec<Instance> = good.iter().map(|id| named(fleet, id)).collect::<Result<_, _>>()?;
            let views: Vec<View> = good.iter().map(View::from).collect();
            let failed: Vec<_> = failed.iter().map(|(row, failed)| view(row, failed)).collect();
            printer.json(&json!({ "instances": views, "failed": failed }))?;
        }
        report(printer, &failed, rows.len())
    }
}

fn say_plan(printer: &Printer, common: &Common, rows: &[Instance], cost: MicroUsd) {
    let what = if common.count == 1 { "exit bridge" } else { "exit bridges" };
    printer.say(format_args!(
        "plan: {} {what} by provider {}, for {cost} at most, and traffic",
        common.count, common.provider
    ));
    let mut regions: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().filter_map(Instance::region).for_each(|region| *regions.entry(region).or_default() += 1);
    for (region, count) in regions {
        printer.say(format_args!("  {count} in {region}"));
    }
    if let Some(row) = rows.first() {
        let lifetime = humantime::format_duration(common.lifetime);
        printer.say(format_args!("  until {} ({lifetime})", rfc3339(row.expires)));
    }
}

/// Asks a person. Nobody there to be asked is a no.
fn agree(printer: &Printer) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        let what = "--yes: not given, and there is nobody to be asked";
        return Err(Usage::new(what, "`eebt up --dry-run` shows what would be bought").into());
    }
    printer.say("buy them? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("can't read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow::anyhow!("nothing was bought")),
    }
}

fn sum_of(program: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    Ok(HEXLOWER.encode(&Sha256::digest(&bytes)))
}
