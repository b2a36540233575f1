//! Arti's runtime over tokio and rustls, with TCP sockets that send small writes at once.
//!
//! Arti leaves Nagle's algorithm on: a cell written while another is unacknowledged then waits for a
//! round trip. A BEGIN with optimistic data behind it is just that case.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::runtime::{Builder, Runtime};
use tor_rtcompat::{CompoundRuntime, NetStreamProvider, PreferredRuntime};

/// The runtime of all our programs.
pub type TorRuntime = CompoundRuntime<
    PreferredRuntime,
    PreferredRuntime,
    PreferredRuntime,
    NoDelay,
    PreferredRuntime,
    PreferredRuntime,
    PreferredRuntime,
>;

/// Makes the runtime with so many threads, at least one, and chooses the TLS implementation of the
/// process. What runs on it ends when the first of the two is dropped.
///
/// One thread moves more bytes for the same work than two do, since cells are handed from task to task
/// without waking a thread (docs/adr/0010).
///
/// # Errors
/// Threads can't be started.
pub fn create_runtime(threads: usize) -> io::Result<(Runtime, TorRuntime)> {
    // An earlier choice may stand: there is only one to choose from.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tokio = Builder::new_multi_thread().worker_threads(threads.max(1)).enable_all().build()?;
    let rt = {
        let _inside = tokio.enter();
        PreferredRuntime::current()?
    };
    let tcp = NoDelay(rt.clone());
    let tor = CompoundRuntime::new(rt.clone(), rt.clone(), rt.clone(), tcp, rt.clone(), rt.clone(), rt);
    Ok((tokio, tor))
}

/// TCP with `TCP_NODELAY`.
#[derive(Clone)]
pub struct NoDelay(PreferredRuntime);

#[async_trait]
impl NetStreamProvider for NoDelay {
    type Stream = <PreferredRuntime as NetStreamProvider>::Stream;
    type Listener = <PreferredRuntime as NetStreamProvider>::Listener;
    type ConnectOptions = <PreferredRuntime as NetStreamProvider>::ConnectOptions;
    type ListenOptions = <PreferredRuntime as NetStreamProvider>::ListenOptions;

    // Arti sets buffer sizes by `options` nowhere; should it begin to, they are lost here, no more.
    async fn connect(&self, addr: &SocketAddr, _options: &Self::ConnectOptions) -> io::Result<Self::Stream> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream.into())
    }

    async fn listen(&self, addr: &SocketAddr, options: &Self::ListenOptions) -> io::Result<Self::Listener> {
        self.0.listen(addr, options).await
    }
}
