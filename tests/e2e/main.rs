//! End-to-end cases. Two run at a time, each on a private Tor network that it has for itself; these are taken down at the
//! end, and by their own watch when this process dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod auto;
mod bad_input;
mod browsers;
mod bulk;
mod ctor;
mod directory;
mod fleet;
mod leak;
mod liars;
mod life;
mod local_page;
mod onion;
mod package;
mod page;
mod privacy;
mod recipes;
mod refusals;
mod selftest;
mod strangers;
mod table;
mod tls;
mod volunteer;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tests::Lab;

/// Longest time for one case. Some have a network of their own, and Chutney takes half a minute more than testnet.
const LIMIT: Duration = Duration::from_secs(420);

/// Most cases of one run that may need a second try.
const MAX_SECOND_TRIES: u32 = 4;

/// How many of the slowest cases are named at the end.
const SLOWEST: usize = 10;

/// A case: what it promises, and how it is shown.
type Cases = Vec<Trial>;

/// What a module's cases are made with.
pub struct Suite {
    labs: Arc<Labs>,
    runtime: tokio::runtime::Handle,
    cases: Cases,
    second_tries: Arc<AtomicU32>,
    /// Name and reason of each try that failed.
    why: Arc<Mutex<Vec<String>>>,
    /// How long each took.
    took: Arc<Mutex<Vec<(Duration, String)>>>,
}

/// Labs that are up and that no case uses now.
#[derive(Default)]
struct Labs(Mutex<Vec<Lab>>);

impl Labs {
    /// One for a case alone.
    async fn take(&self) -> anyhow::Result<Lab> {
        let free = self.0.lock().unwrap().pop();
        match free {
            Some(lab) => Ok(lab),
            None => Lab::start().await,
        }
    }

    fn give_back(&self, lab: Lab) {
        self.0.lock().unwrap().push(lab);
    }
}

impl Suite {
    /// Adds a case.
    ///
    /// A case that fails is tried once more, for the network under it is real and the machine may be
    /// busy. That it had to be is said loudly, and more than [`MAX_SECOND_TRIES`] fail the run.
    pub fn case<F>(&mut self, name: &str, case: F)
    where
        F: AsyncFn(&Lab) -> anyhow::Result<()> + Send + 'static,
    {
        self.case_if(true, name, case);
    }

    /// Adds a case that has one try: it counts what must never happen.
    pub fn case_once<F>(&mut self, name: &str, case: F)
    where
        F: AsyncFn(&Lab) -> anyhow::Result<()> + Send + 'static,
    {
        self.add(true, false, name, case);
    }

    /// Adds a case that is only run where that is possible, and else shown as ignored.
    pub fn case_if<F>(&mut self, possible: bool, name: &str, case: F)
    where
        F: AsyncFn(&Lab) -> anyhow::Result<()> + Send + 'static,
    {
        self.add(possible, true, name, case);
    }

    fn add<F>(&mut self, possible: bool, second_try: bool, name: &str, case: F)
    where
        F: AsyncFn(&Lab) -> anyhow::Result<()> + Send + 'static,
    {
        let (labs, runtime) = (Arc::clone(&self.labs), self.runtime.clone());
        let (named, second_tries) = (name.to_owned(), Arc::clone(&self.second_tries));
        let (took, why) = (Arc::clone(&self.took), Arc::clone(&self.why));
        let trial = Trial::test(name, move || {
            runtime.block_on(async {
                let lab = labs.take().await.map_err(failed)?;
                let once = async || {
                    let start = Instant::now();
                    let done = tokio::time::timeout(LIMIT, case(&lab)).await;
                    took.lock().unwrap().push((start.elapsed(), named.clone()));
                    let done = done.map_err(failed).and_then(|done| done.map_err(failed));
                    if let Err(failed) = &done {
                        why.lock()
                            .unwrap()
                            .push(format!("{named}: {}", failed.message().unwrap_or_default()));
                    }
                    done
                };
                let mut done = once().await;
                if done.is_err()
                    && second_try
                    && second_tries.fetch_add(1, Ordering::Relaxed) < MAX_SECOND_TRIES
                {
                    // The network votes every 10 s; one consensus may have missed a relay.
                    tokio::time::sleep(Duration::from_secs(25)).await;
                    done = once().await;
                }
                labs.give_back(lab);
                done
            })
        });
        self.cases.push(trial.with_ignored_flag(!possible));
    }
}

fn failed(error: impl std::fmt::Debug) -> Failed {
    Failed::from(format!("{error:?}"))
}

fn main() {
    let mut args = Arguments::from_args();
    // Most of them wait more than they work; more at a time would make waiting longer on a small machine.
    args.test_threads.get_or_insert(2);
    strangers::arti_runtime();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    if let Ok(what) = std::env::var(leak::INSIDE) {
        if let Err(error) = runtime.block_on(leak::inside(&what)) {
            eprintln!("{error:?}");
            std::process::exit(1);
        }
        return;
    }
    let mut suite = Suite {
        labs: Arc::default(),
        runtime: runtime.handle().clone(),
        cases: Vec::new(),
        second_tries: Arc::default(),
        why: Arc::default(),
        took: Arc::default(),
    };
    page::cases(&mut suite);
    auto::cases(&mut suite);
    tls::cases(&mut suite);
    browsers::cases(&mut suite);
    recipes::cases(&mut suite);
    package::cases(&mut suite);
    leak::cases(&mut suite);
    selftest::cases(&mut suite);
    onion::cases(&mut suite);
    ctor::cases(&mut suite);
    table::cases(&mut suite);
    directory::cases(&mut suite);
    bulk::cases(&mut suite);
    refusals::cases(&mut suite);
    strangers::cases(&mut suite);
    life::cases(&mut suite);
    liars::cases(&mut suite);
    local_page::cases(&mut suite);
    privacy::cases(&mut suite);
    bad_input::cases(&mut suite);
    fleet::cases(&mut suite);
    volunteer::cases(&mut suite);

    let conclusion = libtest_mimic::run(&args, suite.cases);
    let mut took = suite.took.lock().unwrap();
    took.sort();
    for (time, name) in took.iter().rev().take(SLOWEST) {
        eprintln!("{:6.1} s: {name}", time.as_secs_f32());
    }
    let why = std::mem::take(&mut *suite.why.lock().unwrap());
    for failed in &why {
        eprintln!("FAILED TRY: {failed}");
    }
    let keep_logs = conclusion.has_failed() || !why.is_empty();
    for lab in std::mem::take(&mut *suite.labs.0.lock().unwrap()) {
        let kept = runtime.block_on(lab.shutdown(keep_logs)).expect("the network goes down");
        if let Some(dir) = kept {
            eprintln!("logs of all programs are in {}", dir.display());
        }
    }
    conclusion.exit();
}
