//! End-to-end cases. One private Tor network serves all of them; it is taken down at the end, and by
//! its own watch when this process dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod bad_input;
mod bulk;
mod fleet;
mod life;
mod page;
mod privacy;
mod refusals;
mod strangers;

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tests::Lab;

/// Longest time for one case.
const LIMIT: Duration = Duration::from_secs(180);

/// A case: what it promises, and how it is shown.
type Cases = Vec<Trial>;

/// What a module's cases are made with.
pub struct Suite {
    lab: Arc<tokio::sync::OnceCell<Lab>>,
    runtime: tokio::runtime::Handle,
    cases: Cases,
}

impl Suite {
    /// Adds a case.
    pub fn case<F>(&mut self, name: &str, case: F)
    where
        F: AsyncFnOnce(&Lab) -> anyhow::Result<()> + Send + 'static,
    {
        let (lab, runtime) = (Arc::clone(&self.lab), self.runtime.clone());
        self.cases.push(Trial::test(name, move || {
            runtime.block_on(async {
                let lab = lab.get_or_try_init(Lab::start).await.map_err(failed)?;
                tokio::time::timeout(LIMIT, case(lab)).await.map_err(failed)?.map_err(failed)
            })
        }));
    }
}

fn failed(error: impl std::fmt::Debug) -> Failed {
    Failed::from(format!("{error:?}"))
}

fn main() {
    let mut args = Arguments::from_args();
    // One at a time: times are measured, and the machine may be small.
    args.test_threads.get_or_insert(1);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut suite = Suite { lab: Arc::default(), runtime: runtime.handle().clone(), cases: Vec::new() };
    page::cases(&mut suite);
    bulk::cases(&mut suite);
    refusals::cases(&mut suite);
    strangers::cases(&mut suite);
    life::cases(&mut suite);
    privacy::cases(&mut suite);
    bad_input::cases(&mut suite);
    fleet::cases(&mut suite);

    let conclusion = libtest_mimic::run(&args, suite.cases);
    if let Some(lab) = Arc::into_inner(suite.lab).and_then(tokio::sync::OnceCell::into_inner) {
        let kept = runtime.block_on(lab.shutdown(conclusion.has_failed())).expect("the network goes down");
        if let Some(dir) = kept {
            eprintln!("logs of all programs are in {}", dir.display());
        }
    }
    conclusion.exit();
}
