//! The local page: what goes where now, and what the person chooses for single sites.
//!
//! Served on loopback only, by HTML that needs no JavaScript. [`guard`] decides who may ask, [`actions`]
//! holds the requests, [`view`] gathers what is to be shown and [`html`] writes it, [`place`] is where the
//! page is found.

mod actions;
mod guard;
mod help;
mod html;
mod place;
mod view;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::config::{Config, DEFAULT_PAGE};
use crate::connect::Connector;
use place::{Kept, Place};
pub use place::{PlaceError, find};

/// Connections at once. A browser opens six.
const CONNECTIONS: usize = 32;

/// How long a browser may take to say what it wants, and keep a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// How often it is looked whether sites can be forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The page, with its port taken; not served yet.
pub struct Page {
    listener: TcpListener,
    place: Place,
    kept: Option<Kept>,
}

impl Page {
    /// Takes the port. When it is the default one and taken, another one: who wants the page asks for its
    /// address anyway, since that is new at each start.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(addr: SocketAddr) -> std::io::Result<Self> {
        let listener = match TcpListener::bind(addr).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && addr == DEFAULT_PAGE => {
                tracing::info!("the local page's usual port is taken; it has another one");
                TcpListener::bind((addr.ip(), 0)).await?
            }
            bound => bound?,
        };
        let place = Place::new(listener.local_addr()?);
        Ok(Self { listener, place, kept: None })
    }

    /// Where it is served, without what lets one in.
    pub fn addr(&self) -> SocketAddr {
        self.place.addr()
    }

    /// Its whole address, for the person's eyes only.
    pub fn url(&self) -> String {
        self.place.url()
    }

    /// Keeps its address in the state folder, as long as it runs. To be called before anybody is told that it is there.
    pub fn keep(&mut self, state_dir: &Path) {
        let kept = self.place.keep(state_dir).inspect_err(|error| {
            tracing::warn!(%error, "the address of the local page can't be kept; --print-page won't know it");
        });
        self.kept = kept.ok();
    }

    /// Serves it. Never returns.
    pub async fn run(self, connector: Arc<Connector>, config: &Config, listen: Vec<SocketAddr>) {
        let Self { listener, place, kept: _kept } = self;
        let visits = Arc::clone(connector.visits());
        let shared = actions::Shared { connector, listen, mode: config.mode, last: Mutex::default() };
        let router = actions::router(Arc::new(shared), Arc::new(place));
        let prune = async {
            loop {
                tokio::time::sleep(PRUNE_EVERY).await;
                visits.prune(std::time::Instant::now());
            }
        };
        tokio::select! {
            () = serve(listener, router) => {}
            () = prune => {}
        }
    }
}

async fn serve(listener: TcpListener, router: axum::Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors, most likely
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 * 1024);
            let serving = http.serve_connection(TokioIo::new(stream), service);
            // How it ended is the browser's business.
            let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
            drop(place);
        });
    }
}
