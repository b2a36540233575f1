//! What TLS hides from mode `auto`, and how it is found: by asking, or from a list.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use testnet::{Origin, Origins, OriginsConfig};
use tests::{Client, Lab};

use crate::Suite;
use crate::browsers::addresses;

/// What stands in the log when a target is believed to turn Tor away.
const VERDICT: &str = "a target turns Tor away";

/// Until an answer to a probe, and a list, must be there.
const SOON: Duration = Duration::from_secs(20);

pub fn cases(suite: &mut Suite) {
    suite.case("a block page inside TLS is found by asking for it, where that is wanted", async |lab| {
        let bridge = lab.bridge().run().await?;
        let origin = lab.origins.blocking_tor_exits_tls();
        let auto = || lab.client().via(&bridge).set("mode", "auto").trusts(lab.origins.ca_file());
        origin.clear_hits();
        let unasked = auto().run().await?;
        ensure!(fetch(lab, &unasked, origin).await? == 403);
        ensure!(visitors(origin) == [lab.net.exit_egress_ip()], "nobody else came: {:?}", visitors(origin));

        origin.clear_hits();
        let client = auto().set("probe", true).run().await?;
        ensure!(fetch(lab, &client, origin).await? == 403, "what TLS hides is not known in advance");
        until_said(&client, VERDICT).await?;
        let (tor, exit_bridge) = (lab.net.exit_egress_ip(), bridge.ip);
        ensure!(visitors(origin) == [tor, tor, exit_bridge], "{:?}", visitors(origin));
        ensure!(fetch(lab, &client, origin).await? == 200);
        ensure!(visitors(origin) == [tor, tor, exit_bridge, exit_bridge], "{:?}", visitors(origin));
        Ok(())
    });

    suite.case("a probe asks once, and believes no page that everybody gets", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).set("mode", "auto").set("probe", true);
        let client = client.trusts(lab.origins.ca_file()).run().await?;
        let open = lab.origins.open_tls();
        open.clear_hits();
        for _ in 0..3 {
            ensure!(fetch(lab, &client, open).await? == 200);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(visitors(open) == [lab.net.exit_egress_ip(); 4], "{:?}", visitors(open));
        ensure!(!client.process.stderr().contains(VERDICT));
        // An authority that this machine does not trust: whoever answers may be anybody.
        let other = lab.client().via(&bridge).set("mode", "auto").set("probe", true).run().await?;
        let blocking = lab.origins.blocking_tor_exits_tls();
        ensure!(fetch(lab, &other, blocking).await? == 403);
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(!other.process.stderr().contains(VERDICT));
        Ok(())
    });

    suite.case(
        "probes for one visitor use that visitor's exit bridge, and tell others nothing",
        async |lab| {
            let mut hosts = Vec::new();
            for _ in 0..4 {
                let config = OriginsConfig { ca_dir: None, ..OriginsConfig::on_network(&lab.net) };
                hosts.push(Origins::start(OriginsConfig { listen_ip: addresses(lab, 7)?, ..config }).await?);
            }
            // All of their authorities are trusted.
            let authorities = lab.folder("authorities").join("all.pem");
            let pems: Result<Vec<String>, _> =
                hosts.iter().map(|h| std::fs::read_to_string(h.ca_file())).collect();
            std::fs::write(&authorities, pems?.concat())?;
            let mut bridges = Vec::new();
            for _ in 0..3 {
                let bridge =
                    hosts.iter().fold(lab.bridge(), |b, h| b.opens(h.blocking_tor_exits_tls().addr()));
                bridges.push(bridge.run().await?);
            }
            let client =
                bridges.iter().fold(lab.client().set("mode", "auto").set("probe", true), |c, b| c.via(b));
            let client = client.trusts(&authorities).run().await?;
            let tor = lab.net.exit_egress_ip();
            let ca = authorities.display().to_string();
            for (n, user) in ["a.example", "b.example"].into_iter().enumerate() {
                let proxy_user = format!("{user}:x");
                let mut exit_bridges = BTreeSet::new();
                for origin in hosts.iter().map(Origins::blocking_tor_exits_tls) {
                    origin.clear_hits();
                    let page = client
                        .curl(&origin.url("/"), &["--cacert", &ca, "--proxy-user", &proxy_user])
                        .await?;
                    ensure!(page.status == 403, "{user} was not here before: {page:?}");
                    let start = Instant::now();
                    // The visit, the probe over Tor, and the one through an exit bridge: for each of the visitors.
                    while visitors(origin).len() < 3 {
                        ensure!(start.elapsed() < SOON, "{user}: {:?}", visitors(origin));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    let came = visitors(origin);
                    ensure!(came[..2] == [tor, tor], "{came:?}");
                    exit_bridges.insert(came[2]);
                }
                ensure!(exit_bridges.len() == 1, "{user}'s probes used {exit_bridges:?}");
                let wanted = hosts.len() * (n + 1);
                let start = Instant::now();
                while client.process.stderr().matches(VERDICT).count() < wanted {
                    ensure!(start.elapsed() < SOON, "not all are known");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                // It is the one that the visitor has.
                let origin = hosts[0].blocking_tor_exits_tls();
                let page =
                    client.curl(&origin.url("/"), &["--cacert", &ca, "--proxy-user", &proxy_user]).await?;
                ensure!(page.status == 200, "{page:?}");
                ensure!(
                    origin.last_peer_ip() == exit_bridges.first().copied(),
                    "{:?}",
                    origin.last_peer_ip()
                );
            }
            Ok(())
        },
    );

    suite.case("a browser's open connection does not keep it on Tor", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).set("mode", "auto").set("probe", true);
        let client = client.trusts(lab.origins.ca_file()).run().await?;
        let origin = lab.origins.blocking_tor_exits_tls();
        // Two pages over one connection, if it lasts: the second one 10 s later.
        let (proxy, url) = (format!("socks5h://{}", client.proxy), origin.url("/"));
        let curl = tokio::process::Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "60",
                "--rate",
                "6/m",
                "-w",
                "%{http_code}\n",
                "-o",
                "/dev/null",
                "-o",
                "/dev/null",
            ])
            .arg("--cacert")
            .arg(lab.origins.ca_file())
            .args(["--proxy", &proxy, &url, &url])
            .kill_on_drop(true)
            .output()
            .await?;
        let statuses = String::from_utf8_lossy(&curl.stdout);
        ensure!(
            statuses.split_whitespace().eq(["403", "200"]),
            "{statuses} {}",
            String::from_utf8_lossy(&curl.stderr)
        );
        Ok(())
    });

    suite.case(
        "sites on a list go to an exit bridge at once: from a file, and from a URL over Tor",
        async |lab| {
            let bridge = lab.bridge().run().await?;
            let (origin, open) = (lab.origins.blocking_tor_exits_tls(), lab.origins.open_tls());
            let file = lab.folder("blockers").join("blockers.txt");
            std::fs::write(&file, "blocker.example\n")?;
            let url = open.url(&format!("/lines/{}", origin.addr().ip()));
            let auto = || lab.client().via(&bridge).set("mode", "auto").trusts(lab.origins.ca_file());

            let by_file = auto().set("blocker_list", file.display().to_string()).run().await?;
            until_said(&by_file, "blocker_list read entries=1").await?;
            ensure!(fetch(lab, &by_file, origin).await? == 403);
            std::fs::write(&file, format!("blocker.example\n{}\n", origin.addr().ip()))?;
            until_said(&by_file, "blocker_list read entries=2").await?;
            ensure!(fetch(lab, &by_file, origin).await? == 200);

            open.clear_hits();
            let by_url = auto().set("blocker_list", url).run().await?;
            until_said(&by_url, "blocker_list read entries=1").await?;
            ensure!(
                visitors(open) == [lab.net.exit_egress_ip()],
                "it was fetched over Tor: {:?}",
                visitors(open)
            );
            origin.clear_hits();
            ensure!(fetch(lab, &by_url, origin).await? == 200);
            ensure!(visitors(origin) == [bridge.ip], "{:?}", visitors(origin));
            Ok(())
        },
    );
}

async fn fetch(lab: &Lab, client: &Client, origin: &Origin) -> anyhow::Result<u16> {
    let ca = lab.origins.ca_file().display().to_string();
    Ok(client.curl(&origin.url("/"), &["--cacert", &ca]).await?.status)
}

fn visitors(origin: &Origin) -> Vec<IpAddr> {
    origin.hits().iter().map(|hit| hit.peer_ip).collect()
}

/// Waits until its log has this.
pub async fn until_said(client: &Client, what: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while !client.process.stderr().contains(what) {
        ensure!(start.elapsed() < SOON, "it did not say {what:?}:\n{}", client.process.stderr());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
