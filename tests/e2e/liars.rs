//! Exit bridges that take circuits and serve badly: the person goes on with another one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tests::{Client, Lab};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::Suite;

/// A channel on which nothing came for so long has its circuits; what comes then is a stream.
const CIRCUITS_ARE_BUILT: Duration = Duration::from_millis(700);

/// How many fetches may fail until the client has found out.
const MAY_FAIL: usize = 4;

pub fn cases(suite: &mut Suite) {
    suite.case("an exit bridge that ends its circuits as soon as they are used is left alone", async |lab| {
        let cutter = Cutter::start(lab.net.spare_ip()).await?;
        let address = cutter.addr.to_string();
        let liar = lab.bridge().set("address", address).run().await?;
        let honest = lab.bridge().run().await?;
        cutter.forward_to(&liar.config)?;
        let client = lab.client().via(&liar).via(&honest).run().await?;
        tokio::time::sleep(2 * CIRCUITS_ARE_BUILT).await;
        goes_on(lab, &client, honest.ip).await?;
        let cuts = cutter.cuts.load(Ordering::Relaxed);
        ensure!(cuts > 0, "nobody met the one that lies");
        ensure!(cuts <= MAY_FAIL, "it was asked again and again: {cuts} times");
        Ok(())
    });

    suite.case("an exit bridge that refuses streams for reasons of its own is left alone", async |lab| {
        let mut rate = toml::Table::new();
        rate.insert("per_second".into(), 0.001.into());
        rate.insert("burst".into(), 1.0.into());
        let mut limits = toml::Table::new();
        limits.insert("new_streams".into(), rate.into());
        let full = lab.bridge().set("limits", limits).run().await?;
        let honest = lab.bridge().run().await?;
        for optimistic in [true, false] {
            let client = lab.client().via(&full).via(&honest).set("optimistic", optimistic).run().await?;
            goes_on(lab, &client, honest.ip).await?;
        }
        Ok(())
    });
}

/// Whoever comes, all of them, and again and again, is served by the honest one after a few failures.
async fn goes_on(lab: &Lab, client: &Client, honest: IpAddr) -> anyhow::Result<()> {
    let url = lab.origins.open().url("/peer");
    let mut pages = Vec::new();
    for _ in 0..3 {
        for user in ["a", "b", "c", "d", "e", "f"] {
            pages.push(client.get_as(user, &url).await?);
        }
    }
    let served = |page: &&tests::Fetched| page.status == 200;
    let failed = pages.len() - pages.iter().filter(served).count();
    ensure!(failed <= MAY_FAIL, "{failed} fetches failed: {pages:?}");
    let last = &pages[pages.len() / 2..];
    ensure!(last.iter().all(|page| page.text == honest.to_string()), "{last:?}");
    Ok(())
}

/// Stands before an exit bridge, and ends each connection from a relay when it is first used for a stream.
struct Cutter {
    addr: SocketAddr,
    to: Arc<std::sync::OnceLock<SocketAddr>>,
    cuts: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Cutter {
    async fn start(ip: IpAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let addr = listener.local_addr()?;
        let (to, cuts) = (Arc::<std::sync::OnceLock<SocketAddr>>::default(), Arc::<AtomicUsize>::default());
        let (whereto, count) = (Arc::clone(&to), Arc::clone(&cuts));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(to) = whereto.get().copied() else { continue };
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    if carry_until_used(stream, to).await.is_ok_and(|used| used) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Ok(Self { addr, to, cuts, accepting })
    }

    /// The exit bridge with this configuration is behind it.
    fn forward_to(&self, config: &std::path::Path) -> anyhow::Result<()> {
        let config: toml::Table = std::fs::read_to_string(config)?.parse()?;
        let listen = config.get("listen").and_then(|listen| listen.as_str()).unwrap_or_default();
        let _once = self.to.set(listen.parse()?);
        Ok(())
    }
}

/// Carries bytes both ways until the peer says something after it was quiet: whether it did.
async fn carry_until_used(mut peer: TcpStream, to: SocketAddr) -> std::io::Result<bool> {
    let mut bridge = TcpStream::connect(to).await?;
    bridge.set_nodelay(true)?;
    peer.set_nodelay(true)?;
    let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    let mut quiet = false;
    loop {
        let both = async {
            tokio::select! {
                read = peer.read(&mut up) => (true, read),
                read = bridge.read(&mut down) => (false, read),
            }
        };
        match timeout(CIRCUITS_ARE_BUILT, both).await {
            Err(_) => quiet = true,
            Ok((_, read)) if matches!(read, Ok(0) | Err(_)) => return Ok(false),
            Ok((true, _)) if quiet => return Ok(true),
            Ok((true, read)) => bridge.write_all(&up[..read?]).await?,
            Ok((false, read)) => peer.write_all(&down[..read?]).await?,
        }
    }
}
