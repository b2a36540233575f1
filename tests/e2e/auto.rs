//! Mode `auto`: blocked pages open by themselves, open ones stay on Tor, and nothing is done twice.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use testnet::{Origin, Origins, OriginsConfig, TestNet, TurnAway};
use tests::{Bridge, Client, Lab};

use crate::Suite;

/// What stands in the log when a target is believed to turn Tor away.
const VERDICT: &str = "a target turns Tor away";

/// One-way delay on each link of a network as slow as Tor.
const HOP: Duration = Duration::from_millis(40);

/// Fetches from a slow origin that is honest.
const SLOW_FETCHES: u64 = 200;

pub fn cases(suite: &mut Suite) {
    suite.case(
        "auto: a page that refuses Tor opens, and the next fetch goes to the exit bridge at once",
        async |lab| {
            let (bridge, client) = auto(lab).await?;
            let origin = lab.origins.blocking_tor_exits();
            origin.clear_hits();
            ensure!(client.get(&origin.url("/")).await?.status == 200);
            ensure!(visitors(origin) == [lab.net.exit_egress_ip(), bridge.ip], "{:?}", visitors(origin));
            origin.clear_hits();
            ensure!(client.get(&origin.url("/")).await?.status == 200);
            ensure!(visitors(origin) == [bridge.ip], "{:?}", visitors(origin));
            Ok(())
        },
    );

    suite.case("auto: open pages stay on Tor, whatever their size and status", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let (open, tls) = (lab.origins.open(), lab.origins.open_tls());
        open.clear_hits();
        tls.clear_hits();
        let ca = lab.origins.ca_file().display().to_string();
        ensure!(client.curl(&tls.url("/"), &["--cacert", &ca]).await?.status == 200);
        client.get(&open.url("/bulk/20000000")).await?.is_bulk(20_000_000)?;
        client.upload(open, "/sink", 5_000_000).await?;
        for status in [403, 404, 500, 503] {
            ensure!(client.get(&open.url(&format!("/status/{status}"))).await?.status == status);
        }
        ensure!(visitors(open).iter().chain(&visitors(tls)).all(|ip| *ip != bridge.ip));
        ensure!(!client.process.stderr().contains(VERDICT));
        Ok(())
    });

    suite.case("auto: what could have an effect is sent once", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let origin = lab.origins.blocking_tor_exits();
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            origin.clear_hits();
            let page = client.curl(&origin.url("/"), &["-X", method, "-d", "x=1"]).await?;
            ensure!(page.status == 403, "the person sees what Tor met: {page:?}");
            ensure!(visitors(origin) == [lab.net.exit_egress_ip()], "{method}: {:?}", visitors(origin));
        }
        // Once it is known that Tor is refused, it goes to the exit bridge, and there alone.
        ensure!(client.get(&origin.url("/")).await?.status == 200);
        origin.clear_hits();
        ensure!(client.curl(&origin.url("/"), &["-d", "x=1"]).await?.status == 200);
        ensure!(visitors(origin) == [bridge.ip], "{:?}", visitors(origin));
        Ok(())
    });

    suite.case("auto: a challenge for Tor's exits is not shown", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let origin = lab.origins.blocking_tor_exits();
        origin.clear_hits();
        ensure!(client.get(&origin.url("/challenge")).await?.status == 200);
        ensure!(visitors(origin) == [lab.net.exit_egress_ip(), bridge.ip], "{:?}", visitors(origin));
        ensure!(client.process.stderr().contains("Cloudflare's challenge"));
        Ok(())
    });

    suite.case("auto: a log-in that is tied to an address lasts", async |lab| {
        let bridges = [lab.bridge().run().await?, lab.bridge().run().await?, lab.bridge().run().await?];
        let client = bridges.iter().fold(lab.client().set("mode", "auto"), |c, b| c.via(b)).run().await?;
        let origin = lab.origins.blocking_tor_exits();
        origin.clear_hits();
        for person in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            // As Tor Browser does: one name for each site in the address bar.
            ensure!(client.get_as(person, &origin.url("/")).await?.status == 200);
            let jar = client.dir.join(person).display().to_string();
            let as_person = ["--proxy-user", &format!("{person}:x"), "-c", &jar, "-b", &jar];
            let login =
                client.curl(&origin.url("/login"), &[&as_person[..], &["-d", "name=x"]].concat()).await?;
            ensure!(login.status == 200, "{login:?}");
            for _ in 0..5 {
                let account = client.curl(&origin.url("/account"), &as_person).await?;
                ensure!(account.status == 200, "{account:?}");
            }
        }
        let used: std::collections::HashSet<_> = visitors(origin).into_iter().collect();
        ensure!(used.len() > 2, "all persons had the same address: {used:?}");
        Ok(())
    });

    for (name, how) in [("resets", TurnAway::Reset), ("closes", TurnAway::Close), ("stalls", TurnAway::Stall)]
    {
        for optimistic in [true, false] {
            let said = if optimistic { "" } else { ", without optimistic data" };
            let name =
                format!("auto: an origin that {name} connections from Tor opens, with TLS and without{said}");
            suite.case(&name, async move |lab| rude(lab, how, optimistic).await);
        }
    }

    suite.case("auto: when no exit bridge works, the person sees what Tor met", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let origin = lab.origins.blocking_tor_exits();
        ensure!(client.get(&origin.url("/")).await?.status == 200);
        bridge.process.signal(Signal::SIGKILL);
        // A fetch that is under way before the client hears of that breaks.
        let mut page = client.get(&origin.url("/")).await?;
        if page.status == 0 {
            page = client.get(&origin.url("/")).await?;
        }
        ensure!(page.status == 403, "it was known to refuse Tor: {page:?}");
        let other = lab.client().via(&bridge).set("mode", "auto").run().await?;
        let page = other.get(&origin.url("/")).await?;
        ensure!(page.status == 403 && page.text.contains("Tor exit"), "it was not known: {page:?}");
        ensure!(!other.process.stderr().contains(VERDICT), "nothing was learned");
        Ok(())
    });

    suite.case("auto: a person's rules come first", async |lab| {
        let bridge = lab.bridge().run().await?;
        let origins = &lab.origins;
        let ip = |origin: &Origin| origin.addr().ip().to_canonical();
        let rules = vec![
            format!("{}=tor", ip(origins.blocking_tor_exits())),
            format!("{}=exit-bridge", ip(origins.open())),
        ];
        let client = lab.client().via(&bridge).set("mode", "auto").set("rules", rules).run().await?;
        ensure!(client.get(&origins.blocking_tor_exits().url("/")).await?.status == 403);
        ensure!(client.get(&origins.open().url("/peer")).await?.text == bridge.ip.to_string());
        Ok(())
    });

    suite.case(
        "auto: what turned Tor away is on disk only where asked, and outlives the program",
        async |lab| {
            let bridge = lab.bridge().run().await?;
            let file = lab.folder("verdicts").join("verdicts.json");
            let client = || lab.client().via(&bridge).set("mode", "auto");
            let keeps = || client().set("verdict_file", file.display().to_string());
            let origin = lab.origins.blocking_tor_exits();
            let first = keeps().run().await?;
            ensure!(first.get(&origin.url("/")).await?.status == 200);
            drop(first);
            origin.clear_hits();
            ensure!(keeps().run().await?.get(&origin.url("/")).await?.status == 200);
            ensure!(visitors(origin) == [bridge.ip], "{:?}", visitors(origin));

            let forgets = client().run().await?;
            ensure!(forgets.get(&origin.url("/")).await?.status == 200);
            let host = origin.addr().ip().to_string();
            let kept = std::process::Command::new("grep").args(["-rl", &host]).arg(&forgets.dir).output()?;
            ensure!(kept.stdout.is_empty(), "{}", String::from_utf8_lossy(&kept.stdout));
            Ok(())
        },
    );

    suite.case(
        "auto: a slow origin is never taken for one that blocks, on a network as slow as Tor",
        async |_| {
            let lab = Lab::on(TestNet::builder().latency(HOP).start().await?).await?;
            let result = slow(&lab).await;
            lab.shutdown(false).await?;
            result
        },
    );
}

/// An exit bridge, and a client that decides by itself.
async fn auto(lab: &Lab) -> anyhow::Result<(Bridge, Client)> {
    let bridge = lab.bridge().run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").run().await?;
    Ok((bridge, client))
}

fn visitors(origin: &Origin) -> Vec<IpAddr> {
    origin.hits().iter().map(|hit| hit.peer_ip).collect()
}

/// Origins that treat Tor's exits so: the page opens, and the second time nobody asks over Tor.
async fn rude(lab: &Lab, how: TurnAway, optimistic: bool) -> anyhow::Result<()> {
    let config = OriginsConfig { turn_away: Some(how), ca_dir: None, ..OriginsConfig::on_network(&lab.net) };
    let origins = Origins::start(config).await?;
    let (http, https) = (origins.blocking_tor_exits(), origins.blocking_tor_exits_tls());
    let bridge = lab.bridge().opens(http.addr()).opens(https.addr()).run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").set("patience", "2s");
    let client = client.set("optimistic", optimistic).run().await?;
    let ca = origins.ca_file().display().to_string();
    for origin in [http, https] {
        let fetch = async || client.curl(&origin.url("/"), &["--cacert", &ca]).await;
        let page = fetch().await?;
        ensure!(page.status == 200, "{}: {page:?}", origin.name());
        ensure!(visitors(origin).contains(&lab.net.exit_egress_ip()), "Tor was not tried");
        if how == TurnAway::Stall {
            tokio::time::sleep(Duration::from_secs(3)).await; // silence is believed only then
        }
        origin.clear_hits();
        let page = fetch().await?;
        ensure!(
            page.status == 200 && visitors(origin) == [bridge.ip],
            "{}: {:?}",
            origin.name(),
            visitors(origin)
        );
    }
    Ok(())
}

/// An honest origin that takes its time: up to nearly twice as long as clients wait before they ask an exit
/// bridge too, and never the same time twice.
async fn slow(lab: &Lab) -> anyhow::Result<()> {
    let patience = Duration::from_secs(2);
    let bridge = lab.bridge().behind(HOP).await?.run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").set("patience", "2s").run().await?;
    let (client, origin) = (Arc::new(client), lab.origins.open());
    origin.clear_hits();
    let longest = u64::try_from((patience * 3 / 2).as_millis())?;
    let fetches = futures::stream::iter(0..SLOW_FETCHES).map(|n| {
        let client = Arc::clone(&client);
        let url = origin.url(&format!("/late/{}", n * 7919 % longest));
        async move { client.get(&url).await }
    });
    let pages: Vec<_> = fetches.buffer_unordered(20).collect().await;
    for page in pages {
        let page = page?;
        ensure!(page.status == 200, "{page:?}");
    }
    let asked = visitors(origin).iter().filter(|ip| **ip == bridge.ip).count();
    ensure!(asked > 0, "no fetch took so long that an exit bridge was asked");
    let verdicts = client.process.stderr().matches(VERDICT).count();
    ensure!(verdicts == 0, "{verdicts} false verdicts");
    let peer = client.get(&origin.url("/peer")).await.context("in the end")?;
    ensure!(peer.text == lab.net.exit_egress_ip().to_string(), "{peer:?}");
    Ok(())
}
