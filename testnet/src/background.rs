//! Threads that outlive the caller's runtime.
//!
//! `#[tokio::test]` gives each test a runtime of its own, while a network and its origins are often shared
//! between tests. Delayed links and origins therefore run here, once per process.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

static BACKGROUND: OnceLock<io::Result<Runtime>> = OnceLock::new();

/// The runtime for everything that must survive the runtime it was asked for in.
pub(crate) fn runtime() -> io::Result<&'static Runtime> {
    BACKGROUND
        .get_or_init(|| {
            Builder::new_multi_thread().worker_threads(2).thread_name("testnet").enable_all().build()
        })
        .as_ref()
        .map_err(|error| io::Error::new(error.kind(), error.to_string()))
}
