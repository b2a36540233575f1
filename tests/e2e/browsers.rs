//! Browsers on mode `auto`: a page whose parts come from several hosts, some of which turn Tor away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testnet::{Origin, Origins, OriginsConfig, TurnAway};
use tests::{Browser, Lab};

use crate::Suite;

/// How long a browser may take to start and to load a page.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn cases(suite: &mut Suite) {
    for browser in [Browser::Firefox, Browser::Chromium] {
        let name = format!(
            "{browser:?} loads a page with parts from hosts that turn Tor away, and the rest works too"
        );
        suite.case(&name, async move |lab| whole_page(lab, browser).await);
    }
}

/// The page is at a host that lets Tor in. Of its pictures one is there as well, one where Tor gets a block page, and one where
/// connections from Tor are reset. So are they at three more hosts, of which the one is wanted for a WebSocket first, the second for
/// HTTP/2, and the third for a large upload.
async fn whole_page(lab: &Lab, browser: Browser) -> anyhow::Result<()> {
    let mut rude = Vec::new();
    for _ in 0..4 {
        let config = OriginsConfig {
            turn_away: Some(TurnAway::Reset),
            ca_dir: None,
            ..OriginsConfig::on_network(&lab.net)
        };
        rude.push(Origins::start(config).await?);
    }
    let (open, blocking) = (lab.origins.open(), lab.origins.blocking_tor_exits());
    let (reset, socket, sink) =
        (rude[0].blocking_tor_exits(), rude[1].blocking_tor_exits(), rude[3].blocking_tor_exits());
    let protocol = rude[2].blocking_tor_exits_tls();
    let bridge =
        [reset, socket, sink, protocol].iter().fold(lab.bridge(), |b, o| b.opens(o.addr())).run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").run().await?;
    [open, blocking].iter().for_each(|origin| origin.clear_hits());

    let mut url = open.url("/visit?times=2&upload=20000000");
    for origin in [open, blocking, reset] {
        url.push_str(&format!("&image={}", origin.url("/image")));
    }
    url.push_str(&format!("&sink={}&socket=ws://{}/socket", sink.url("/sink"), socket.addr()));
    url.push_str(&format!("&protocol={}", protocol.url("/protocol")));
    let dir = lab.folder("browser");
    let _visit = browser.open(&url, client.proxy, rude[2].ca_file(), &dir).await?;

    let first = report(open, 1).await?;
    for (what, expected) in [
        ("resources", "3"),
        ("loaded", "3"),
        ("socket", "100 echoes"),
        ("upload", "20000000 bytes"),
        ("protocol", "HTTP/2.0"),
    ] {
        ensure!(first.get(what).map(String::as_str) == Some(expected), "{what}: {first:?}");
    }
    let second = report(open, 2).await?;
    ensure!(second.get("loaded").map(String::as_str) == Some("3"), "{second:?}");

    let tor = lab.net.exit_egress_ip();
    let came = |origin: &Origin, path: &str| -> Vec<IpAddr> {
        origin.hits().iter().filter(|hit| hit.path == path).map(|hit| hit.peer_ip).collect()
    };
    ensure!(came(open, "/image?visit=1") == [tor] && came(open, "/image?visit=2") == [tor], "it lets Tor in");
    for (origin, tried) in [(blocking, vec![tor, bridge.ip]), (reset, vec![bridge.ip])] {
        ensure!(came(origin, "/image?visit=1") == tried, "{}: {:?}", origin.name(), origin.hits());
        ensure!(came(origin, "/image?visit=2") == [bridge.ip], "{}: {:?}", origin.name(), origin.hits());
    }
    // Each was tried over Tor, where the connection is reset, and said again; nothing of it reached the host before.
    for (origin, path) in [(socket, "/socket"), (protocol, "/protocol"), (sink, "/sink")] {
        let visitors = came(origin, path);
        ensure!(!visitors.is_empty() && visitors.iter().all(|ip| *ip == bridge.ip), "{path}: {visitors:?}");
        let tried = came(origin, "");
        ensure!(tried.contains(&tor) && tried.iter().all(|ip| *ip == tor), "{path}: {:?}", origin.hits());
    }
    let uploads = sink.hits().iter().filter(|hit| hit.method == "PUT").count();
    ensure!(uploads == 2, "each upload is sent once: {:?}", sink.hits());
    Ok(())
}

/// The first of that many addresses, one after the other, that nothing else on the network has.
pub fn addresses(lab: &Lab, n: usize) -> anyhow::Result<IpAddr> {
    let ips: Vec<IpAddr> = (0..n).map(|_| lab.net.spare_ip()).collect();
    let in_a_row = ips.windows(2).all(|pair| match pair {
        [IpAddr::V4(a), IpAddr::V4(b)] => a.to_bits() + 1 == b.to_bits(),
        _ => false,
    });
    ensure!(in_a_row, "{ips:?}");
    ips.first().copied().context("none")
}

/// What the page said of its `visit`th time.
async fn report(origin: &Origin, visit: usize) -> anyhow::Result<HashMap<String, String>> {
    let start = Instant::now();
    let begins = format!("/report?visit={visit}&");
    loop {
        if let Some(hit) = origin.hits().iter().find(|hit| hit.path.starts_with(&begins)) {
            let pairs = hit.path.split(['?', '&']).skip(1).filter_map(|pair| pair.split_once('='));
            return Ok(pairs
                .map(|(name, value)| (name.to_owned(), value.replace('+', " ").replace("%2F", "/")))
                .collect());
        }
        let paths = || origin.hits().iter().map(|hit| hit.path.clone()).collect::<Vec<_>>();
        ensure!(start.elapsed() < PATIENCE, "no report of visit {visit}; it asked for {:?}", paths());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
