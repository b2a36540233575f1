//! Who can use which exit bridge. Each pair carries bytes both ways and many streams at once, refuses what the exit
//! bridge refuses, and fails closed when that dies in mid-stream.
//!
//! | | circuit exit bridge | unlisted C tor exit | onion exit bridge |
//! |---|---|---|---|
//! | eebt-client | yes | yes | yes |
//! | C tor with tor-patches/c-tor | yes | yes | no: its circuits to onion services carry no host names |
//! | C tor as it is, with `eebt attach` | yes | yes | no: the same, and a controller cannot change that |

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::ensure;
use eebt_proto::BridgeLine;
use tests::{Bridge, Lab, Running, Way, patched_tor};

use crate::Suite;

const MB: u64 = 1_000_000;

/// Whose side the person is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Patched,
    Attached,
}

/// What streams leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Circuit,
    CTor,
    Onion,
}

/// The person's side, as long as it is not dropped.
struct Leads {
    way: Way,
    _runs: Vec<Running>,
}

/// The exit bridge, as long as it is not dropped.
struct Leaves {
    line: BridgeLine,
    /// What origins see, where that is an address of its own: a C tor on loopback has that of the exits that are listed.
    ip: Option<IpAddr>,
    _runs: Running,
}

pub fn cases(suite: &mut Suite) {
    use {Exit as E, Side as S};
    for (side, who) in [
        (S::Client, "eebt-client"),
        (S::Patched, "C tor with the patches"),
        (S::Attached, "C tor with eebt attach"),
    ] {
        for (exit, what) in [
            (E::Circuit, "a circuit exit bridge"),
            (E::CTor, "an unlisted C tor exit"),
            (E::Onion, "an onion exit bridge"),
        ] {
            let possible = side != S::Patched || patched_tor().is_some();
            match (side, exit) {
                (S::Patched, E::Onion) => {
                    suite.case_if(possible, &format!("{who} refuses {what}"), patched_refuses_onion);
                }
                (S::Attached, E::Onion) => {
                    suite.case(&format!("{who} refuses {what}"), attach_refuses_onion);
                }
                _ => suite.case_if(possible, &format!("{who} uses {what}"), async move |lab: &Lab| {
                    hold(lab, side, exit).await
                }),
            }
        }
    }
}

/// Holds one pair to what all of them promise.
async fn hold(lab: &Lab, side: Side, exit: Exit) -> anyhow::Result<()> {
    let leaves = match exit {
        Exit::Circuit => ours(lab.bridge().run().await?),
        Exit::Onion => ours(lab.bridge().onion().run().await?),
        Exit::CTor => {
            let (tor, line) = lab.unlisted_exit().await?;
            Leaves { line, ip: None, _runs: tor.process }
        }
    };
    // Nobody is at home there, or somebody whom the exit bridge must not visit.
    let closed = SocketAddr::new(lab.net.spare_ip(), lab.origins.open().addr().port());
    let trap = match exit {
        Exit::CTor => None,
        Exit::Circuit | Exit::Onion => Some(tokio::net::TcpListener::bind(closed).await?),
    };
    let leads = start(lab, side, &leaves.line, closed).await?;
    let way = &leads.way;

    let (blocking, open) = (lab.origins.blocking_tor_exits(), lab.origins.open());
    let page = way.get(&blocking.url("/")).await?;
    ensure!(page.status == if leaves.ip.is_some() { 200 } else { 403 }, "{page:?}");
    let seen = blocking.last_peer_ip();
    ensure!(seen == Some(leaves.ip.unwrap_or(lab.net.exit_egress_ip())), "{seen:?}");
    way.get(&open.url("/bulk/20000000")).await?.is_bulk(20 * MB)?;
    way.upload(open, "/sink", 10 * MB).await?;
    let url = open.url("/bulk/1000000");
    for page in futures::future::join_all((0..10).map(|_| way.get(&url))).await {
        page?.is_bulk(MB)?;
    }

    let refused = way.curl(&format!("http://{closed}/"), &["--max-time", "30"]).await?;
    ensure!(refused.status == 0 && ![0, 28].contains(&refused.exit_code), "not refused: {refused:?}");
    if let Some(trap) = trap {
        let visit = tokio::time::timeout(Duration::from_millis(200), trap.accept()).await;
        ensure!(visit.is_err(), "somebody was visited who must not be: {visit:?}");
    }

    let (url, slowly) = (open.url("/bulk/50000000"), ["--limit-rate", "2M"]);
    let (broken, ()) = way.curl_meanwhile(&url, &slowly, async { drop(leaves) }).await?;
    ensure!(broken.size > 0 && broken.exit_code != 0, "it did not break: {broken:?}");
    let seen = open.last_peer_ip();
    let after = way.curl(&open.url("/"), &["--max-time", "5"]).await?;
    ensure!(after.status == 0, "there is another way out: {after:?}");
    ensure!(open.last_peer_ip() == seen);
    Ok(())
}

fn ours(bridge: Bridge) -> Leaves {
    Leaves { ip: Some(bridge.ip), line: bridge.line, _runs: bridge.process }
}

/// Starts the person's side.
async fn start(lab: &Lab, side: Side, line: &BridgeLine, closed: SocketAddr) -> anyhow::Result<Leads> {
    Ok(match side {
        Side::Client => {
            let client = lab.client().via_line(line).set("optimistic", false).run().await?;
            Leads { way: Way::clone(&client), _runs: vec![client.process] }
        }
        Side::Patched => {
            let tor = patched_tor().unwrap_or_default();
            let tor = lab.ctor(&tor, &format!("ExitBridge {line}\n")).await?;
            Leads { way: tor.way, _runs: vec![tor.process] }
        }
        Side::Attached => {
            let tor = lab.ctor("tor".as_ref(), "").await?;
            let mut hosts = vec![closed.ip().to_string()];
            hosts.extend(lab.origins.all().iter().map(|origin| origin.addr().ip().to_string()));
            hosts.sort();
            hosts.dedup();
            let attached = lab.operator().attach(&tor, &[line], &hosts, &[]).await?;
            Leads { way: tor.way, _runs: vec![tor.process, attached] }
        }
    })
}

async fn patched_refuses_onion(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().onion().run().await?;
    let tor = lab.ctor(&patched_tor().unwrap_or_default(), &format!("ExitBridge {}\n", bridge.line)).await;
    let Err(error) = tor else { anyhow::bail!("it was taken") };
    ensure!(format!("{error:#}").contains("circuit"), "{error:#}");
    Ok(())
}

async fn attach_refuses_onion(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().onion().run().await?;
    let refused = lab.operator().run(&["attach", "--for", "a.example", &bridge.line.to_string()]).await;
    let Err(error) = refused else { anyhow::bail!("it was taken") };
    ensure!(format!("{error:#}").contains("circuit exit bridges only"), "{error:#}");
    Ok(())
}
