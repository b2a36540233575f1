//! End-to-end cases. One private Tor network serves all of them; it is taken down at the end, and by
//! its own watch when this process dies.

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

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tests::Lab;

/// Longest time for one case.
const LIMIT: Duration = Duration::from_secs(300);

/// Most cases of one run that may need a second try.
const MAX_SECOND_TRIES: u32 = 2;

/// How many of the slowest cases are named at the end.
const SLOWEST: usize = 10;

/// A case: what it promises, and how it is shown.
type Cases = Vec<Trial>;

/// What a module's cases are made with.
pub struct Suite {
    lab: Arc<tokio::sync::OnceCell<Lab>>,
    runtime: tokio::runtime::Handle,
    cases: Cases,
    second_tries: Arc<AtomicU32>,
    /// How long each took.
    took: Arc<Mutex<Vec<(Duration, String)>>>,
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
        let (lab, runtime) = (Arc::clone(&self.lab), self.runtime.clone());
        let (named, second_tries) = (name.to_owned(), Arc::clone(&self.second_tries));
        let took = Arc::clone(&self.took);
        let trial = Trial::test(name, move || {
            runtime.block_on(async {
                let lab = lab.get_or_try_init(Lab::start).await.map_err(failed)?;
                let once = async || {
                    let start = Instant::now();
                    let done = tokio::time::timeout(LIMIT, case(lab)).await;
                    took.lock().unwrap().push((start.elapsed(), named.clone()));
                    done.map_err(failed)?.map_err(failed)
                };
                let Err(first) = once().await else { return Ok(()) };
                if !second_try {
                    return Err(first);
                }
                let why = first.message().unwrap_or_default().to_owned();
                if second_tries.fetch_add(1, Ordering::Relaxed) >= MAX_SECOND_TRIES {
                    return Err(first);
                }
                eprintln!("SECOND TRY: {named}: {why}");
                // The network votes every 10 s; one consensus may have missed a relay.
                tokio::time::sleep(Duration::from_secs(25)).await;
                once().await
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
    // One at a time: times are measured, and the machine may be small.
    args.test_threads.get_or_insert(1);
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
        lab: Arc::default(),
        runtime: runtime.handle().clone(),
        cases: Vec::new(),
        second_tries: Arc::default(),
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

    let conclusion = libtest_mimic::run(&args, suite.cases);
    let mut took = suite.took.lock().unwrap();
    took.sort();
    for (time, name) in took.iter().rev().take(SLOWEST) {
        eprintln!("{:6.1} s: {name}", time.as_secs_f32());
    }
    let second_tries = suite.second_tries.load(Ordering::Relaxed);
    if second_tries > 0 {
        eprintln!("{second_tries} cases failed at first (SECOND TRY above); their logs are kept");
    }
    if let Some(lab) = Arc::into_inner(suite.lab).and_then(tokio::sync::OnceCell::into_inner) {
        let kept = runtime
            .block_on(lab.shutdown(conclusion.has_failed() || second_tries > 0))
            .expect("the network goes down");
        if let Some(dir) = kept {
            eprintln!("logs of all programs are in {}", dir.display());
        }
    }
    conclusion.exit();
}
