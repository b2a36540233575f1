//! The local page: what goes where now, and what the person chooses for single sites.
//!
//! [`eebt_page`] decides who may ask and where it is found, [`actions`] holds the requests, [`view`] gathers what is to be
//! shown and [`html`] writes it.

mod actions;
mod help;
mod html;
mod view;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eebt_page::forms::Last;
use eebt_page::{LocalPage, PlaceError};

use crate::config::{Config, DEFAULT_PAGE};
use crate::connect::Connector;

/// How often it is looked whether sites can be forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The page, with its port taken; not served yet.
pub struct Page(LocalPage);

impl Page {
    /// Takes the port; see [`LocalPage::bind`].
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(addr: SocketAddr) -> std::io::Result<Self> {
        LocalPage::bind(addr, DEFAULT_PAGE, "eebt-client --print-page").await.map(Self)
    }

    /// Where it is served, without what lets one in.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Its whole address, for the person's eyes only.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Keeps its address in the state folder, as long as it runs. To be called before anybody is told that it is there.
    pub fn keep(&mut self, state_dir: &Path) {
        self.0.keep(state_dir);
    }

    /// Serves it. Never returns.
    pub async fn run(self, connector: Arc<Connector>, config: &Config, listen: Vec<SocketAddr>) {
        let visits = Arc::clone(connector.visits());
        let shared = actions::Shared { connector, listen, mode: config.mode, last: Last::default() };
        let router = actions::router(Arc::new(shared));
        let prune = async {
            loop {
                tokio::time::sleep(PRUNE_EVERY).await;
                visits.prune(Instant::now());
            }
        };
        tokio::select! {
            () = self.0.serve(router, "") => {}
            () = prune => {}
        }
    }
}

/// The address of the page of the client that runs with this state folder.
///
/// # Errors
/// See [`PlaceError`].
pub fn find(state_dir: &Path) -> Result<String, PlaceError> {
    eebt_page::find(state_dir, "eebt-client")
}
