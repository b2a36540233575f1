//! What processes cost, from /proc (proc(5)).

use std::fs;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Clock ticks in a second of `/proc/PID/stat`: 100 on every Linux that is in use.
const TICKS_PER_SECOND: f64 = 100.0;

/// What some processes have used up so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Seconds on a processor, in user and kernel mode.
    pub cpu: f64,
    /// Context switches of all threads, voluntary or not.
    pub switches: f64,
}

impl Cost {
    /// That of these processes, threads that have ended left out.
    pub fn of(pids: &[u32]) -> Self {
        pids.iter().fold(Self::default(), |sum, pid| {
            let one = Self::of_one(*pid).unwrap_or_default();
            Self { cpu: sum.cpu + one.cpu, switches: sum.switches + one.switches }
        })
    }

    /// What was used up since.
    pub fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, switches: self.switches - before.switches }
    }

    fn of_one(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything. utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
        let cpu = (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND;
        let mut switches = 0.0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            switches += field(&status, "voluntary_ctxt_switches:").unwrap_or_default();
            switches += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or_default();
        }
        Some(Self { cpu, switches })
    }
}

/// Memory of a process in kB: now, and at its peak.
pub fn memory(pid: u32) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((field(&status, "VmRSS:")?, field(&status, "VmHWM:")?))
}

fn field(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Lets this process open as many files as it may.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("open-file limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("open-file limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cost_is_known() {
        let me = [std::process::id()];
        let before = Cost::of(&me);
        let start = std::time::Instant::now();
        let mut x = 0u64;
        while start.elapsed().as_millis() < 50 {
            x = std::hint::black_box(x + 1);
        }
        let used = Cost::of(&me).since(before);
        assert!(used.cpu > 0.01 && used.cpu < 10.0, "{used:?}");
        let (now, peak) = memory(me[0]).unwrap();
        assert!(now > 500.0 && peak >= now * 0.9);
    }
}
