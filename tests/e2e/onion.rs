//! Onion exit bridges: no port that anybody could reach, and the same service.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use eebt_proto::Reach;
use tests::{Bridge, Lab};
use tokio::process::Command;

use crate::Suite;

/// What this machine's connections to and from relays are: the relay, whose end it is, and the bytes sent.
async fn connections(lab: &Lab) -> anyhow::Result<Vec<(SocketAddr, String, u64)>> {
    let relays = lab.net.relays().iter().map(|relay| SocketAddr::new(relay.address.into(), relay.orport));
    let relays: Vec<_> = relays.collect();
    let out = Command::new("ss").args(["-HtnpiO", "state", "established"]).output().await?;
    let mut found = Vec::new();
    for line in String::from_utf8(out.stdout)?.lines() {
        // Queues, our end, the other end, the process, and much else.
        let words: Vec<&str> = line.split_whitespace().collect();
        let ends = words.get(2..4).context("a line without ends")?.iter().filter_map(|end| end.parse().ok());
        let Some(relay) = ends.into_iter().find(|end| relays.contains(end)) else { continue };
        let process = words.get(4).copied().unwrap_or_default().to_owned();
        let bytes = words.iter().find_map(|word| word.strip_prefix("bytes_sent:"));
        found.push((relay, process, bytes.map_or(Ok(0), str::parse)?));
    }
    Ok(found)
}

/// The relays that this exit bridge has connections to, and the bytes that it sent there.
async fn relays_of(lab: &Lab, bridge: &Bridge) -> anyhow::Result<BTreeMap<SocketAddr, u64>> {
    let pid = format!("pid={},", bridge.process.pid().context("it has ended")?);
    let mut sent = BTreeMap::new();
    for (relay, process, bytes) in connections(lab).await? {
        if process.contains(&pid) {
            *sent.entry(relay).or_default() += bytes;
        }
    }
    Ok(sent)
}

pub fn cases(suite: &mut Suite) {
    suite.case("a page that refuses Tor opens through an onion exit bridge", async |lab| {
        let bridge = lab.bridge().onion().run().await?;
        ensure!(matches!(bridge.line.reach, Reach::Onion(_)), "the line says another reach");
        let listens = std::fs::read_to_string("/proc/net/tcp")?;
        let std::net::IpAddr::V4(ip) = bridge.ip else { anyhow::bail!("an IPv4 address") };
        let hex = format!("{:08X}", u32::from_ne_bytes(ip.octets()));
        // Column 1 is the local address; state 0A is LISTEN. The status page is all that listens.
        let ports = listens
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>())
            .filter(|l| l.len() > 3 && l[1].starts_with(&hex) && l[3] == "0A")
            .map(|l| u16::from_str_radix(&l[1][9..], 16))
            .collect::<Result<Vec<_>, _>>()?;
        ensure!(ports == [bridge.status.port()], "it listens on {ports:?}");

        let client = lab.client().via(&bridge).run().await?;
        let origin = lab.origins.blocking_tor_exits();
        let page = client.get(&origin.url("/")).await?;
        ensure!(page.status == 200, "{page:?}");
        ensure!(origin.last_peer_ip() == Some(bridge.ip), "the origin saw {:?}", origin.last_peer_ip());
        Ok(())
    });

    suite.case("an onion exit bridge keeps its identity when it is started again", async |lab| {
        let bridge = lab.bridge().onion().run().await?;
        let before = bridge.line.reach.clone();
        let again = bridge.restart().await?;
        ensure!(again.line.reach == before, "another identity");
        let client = lab.client().via(&again).run().await?;
        ensure!(client.get(&lab.origins.open().url("/")).await?.status == 200);
        Ok(())
    });

    suite.case("one exit bridge serves circuits and onion clients at once", async |lab| {
        let both = vec![toml::Value::from("circuit"), toml::Value::from("onion")];
        let bridge = lab.bridge().set("reach", both).run().await?;
        let lines = bridge.process.stdout();
        let lines: Vec<eebt_proto::BridgeLine> = lines.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(lines.len() == 2, "{} lines", lines.len());
        for line in &lines {
            let client = lab.client().via_line(line).run().await?;
            let page = client.get(&lab.origins.open().url("/peer")).await?;
            ensure!(page.text.trim() == bridge.ip.to_string(), "{page:?}");
        }
        Ok(())
    });

    suite.case("an onion exit bridge refuses what a circuit one refuses", async |lab| {
        let bridge = lab.bridge().onion().run().await?;
        let client = lab.client().via(&bridge).set("optimistic", false).run().await?;
        for target in ["http://127.0.0.1:80/", "http://169.254.169.254/", "http://10.0.0.1/", "http://[::1]/"]
        {
            let page = client.get(target).await?;
            ensure!(page.status == 0 && page.exit_code == 97, "{target}: {page:?}");
        }
        Ok(())
    });

    for (rendezvous, is_seen) in [("guard", false), ("anonymous", false), ("direct", true)] {
        let name = match is_seen {
            false => format!("relays where clients meet an onion exit bridge do not see it: {rendezvous}"),
            true => format!("and do where the operator says so: {rendezvous}"),
        };
        suite.case(&name, async move |lab| {
            let bridge = lab.bridge().onion().set("rendezvous", rendezvous).run().await?;
            let client = lab.client().via(&bridge).run().await?;
            let before = relays_of(lab, &bridge).await?;
            ensure!(!before.is_empty(), "no connections are seen");
            let url = lab.origins.open().url("/bulk/1000000");
            // Each of them meets it at another relay.
            for n in 0..10 {
                client.get_as(&format!("person{n}"), &url).await?.is_bulk(1_000_000)?;
            }
            let after = relays_of(lab, &bridge).await?;
            // Who is connected says little: in a small network it is most relays, for one reason or another.
            // Bodies go where circuits do.
            let grown = |relay: &SocketAddr, bytes: u64| {
                bytes.saturating_sub(before.get(relay).copied().unwrap_or(0)) > 500_000
            };
            let carried = after.iter().filter(|(relay, bytes)| grown(relay, **bytes)).count();
            ensure!((carried > 1) == is_seen && carried > 0, "before: {before:?}, after: {after:?}");
            Ok(())
        });
    }
    for (path, links) in [("standard", 4), ("vanguards", 5)] {
        suite.case(&format!("links to an onion exit bridge: path {path}"), async move |lab| {
            let (size, url) = (4_000_000, lab.origins.open().url("/bulk/4000000"));
            let mut carried = Vec::new();
            let mut reasons = Vec::new();
            // A circuit is longer where they meet at the guard of the exit bridge, and clients may know few relays to
            // meet at: another exit bridge has another guard.
            for _ in 0..4 {
                let bridge = lab.bridge().onion().run().await?;
                let client = lab.client().via(&bridge).set("path", path).run().await?;
                for n in 0..3 {
                    let sent =
                        async || connections(lab).await.map(|all| all.iter().map(|c| c.2).sum::<u64>());
                    let before = sent().await?;
                    client.get_as(&format!("person{n}"), &url).await?.is_bulk(size)?;
                    carried.push(sent().await?.saturating_sub(before) / (size / 100));
                }
                let logs = [bridge.process.stderr(), client.process.stderr()].join("\n");
                let is_reason =
                    |line: &&str| line.contains("no short way") || line.contains("no plain circuit");
                reasons.extend(logs.lines().filter(is_reason).map(str::to_owned));
            }
            // Cells and TLS add some percent to each byte.
            let least = *carried.iter().min().context("no visits")?;
            let expected = links * 100..links * 100 + 60;
            ensure!(expected.contains(&least), "percent of a body: {carried:?}, {reasons:?}");
            Ok(())
        });
    }
}
