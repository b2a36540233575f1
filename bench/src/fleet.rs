//! `eebt` with a large fleet in an emulated EC2: how long its commands take, what they cost, and how many calls to the
//! cloud they make. The emulator's own time is in it: it serves one call after the other.

#[allow(dead_code, clippy::unwrap_used)] // of the tests
#[path = "../../eebt-provisioner/tests/cloud/emulator.rs"]
mod emulator;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tests::binary;

use self::emulator::{AWS, Emulator};
use crate::figures::{Plan, Unit};
use crate::report::{Report, Sample};

/// What is measured here: two sizes, to see how the cost grows.
pub const SMALL: &str = "50 exit bridges in 5 regions";
pub const LARGE: &str = "500 exit bridges in 5 regions";

const REGIONS: &str = "eu-central-1,eu-west-1,us-east-1,us-east-2,us-west-2";

/// Buys a fleet, looks at it, and ends it.
pub fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for (name, count) in [(SMALL, 50), (LARGE, 500)] {
        if plan.quick && count > 50 {
            continue;
        }
        let (cloud, state) = (Emulator::start(&AWS), tempfile::tempdir()?);
        let mut step = |figure: &str, args: &[&str]| -> anyhow::Result<()> {
            let (start, before, calls) = (Instant::now(), cpu()?, counted(&cloud, "calls")?);
            eebt(&cloud, state.path(), args)?;
            let took = start.elapsed().as_secs_f64() * 1000.0;
            let (cpu, calls) = (cpu()? - before, counted(&cloud, "calls")? - calls);
            for (what, unit, value) in [
                ("time", Unit::Milliseconds, took),
                ("cpu", Unit::Milliseconds, cpu * 1000.0),
                ("calls", Unit::Count, calls),
            ] {
                let (figure, path) = (format!("fleet_{figure}_{what}"), name.to_owned());
                report.add(Sample { figure, path, latency_ms: 0.0, unit, value });
            }
            Ok(())
        };
        let count = count.to_string();
        let mut up =
            vec!["up", "--provider", "aws", "--region", REGIONS, "--count", &count, "--yes", "--no-wait"];
        up.extend(["--max-count", "1000", "--max-spend", "1000000", "--timeout", "30m"]);
        step("up", &up)?;
        // One look at all of it.
        step("look", &["ls", "--json"])?;
        step("down", &["down", "--all"])?;
        ensure!(counted(&cloud, "alive")? == 0.0, "machines are left");
    }
    Ok(())
}

/// Seconds on a processor of all children that were waited for.
fn cpu() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    #[allow(clippy::cast_precision_loss)]
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn eebt(cloud: &Emulator, state: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(binary("eebt"));
    command.args(args).env("EEBT_STATE_DIR", state).stdin(Stdio::null());
    cloud.credentials(&mut command);
    let output = command.output()?;
    ensure!(output.status.success(), "eebt {}: {}", args[0], String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// How many there are of what the emulator counts.
fn counted(cloud: &Emulator, what: &str) -> anyhow::Result<f64> {
    cloud.test("count", &serde_json::json!({}))[what].as_f64().context("no count")
}
