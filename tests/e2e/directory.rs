//! The exit-bridge directory: exit bridges register, clients find them, and nobody else learns much.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Error, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use eebt_bridge::BridgeKeys;
use eebt_bridge::config::ReachKind;
use eebt_proto::descriptor::to_millis;
use eebt_proto::directory::{ATTESTATIONS, DESCRIPTORS, ErrorBody, Registered, Wishes};
use eebt_proto::{
    Attestation, AttestationRequest, BridgeDescriptor, BridgeLine, OnionReach, PortSet, Reach,
    SignedDocument, Ticket,
};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use testnet::TestNet;
use tests::directory::{Directory, HANDED_OUT_FOR};
use tests::{Lab, Running, connections_of, peers_of};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;

use crate::Suite;

/// How long it may take until a new exit bridge is handed out.
const SOON: Duration = Duration::from_secs(60);

/// How soon a withdrawal has effect: "about a second", says docs/protocol.md.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(2);

/// The key of an onion exit bridge that does not exist.
fn key(n: u32) -> SigningKey {
    let mut seed = [42; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// A signed registration of one that does not exist.
fn registration(n: u32) -> anyhow::Result<String> {
    let signing = key(n);
    let now = to_millis(SystemTime::now());
    let reach = Reach::Onion(OnionReach { service: signing.verifying_key().to_bytes() });
    let descriptor = BridgeDescriptor {
        line: BridgeLine { reach, ports: PortSet::web(), expires: None },
        published: now,
        expires: now + Duration::from_secs(3600),
        country: None,
        capacity: 1,
        software: "test".into(),
    };
    Ok(serde_json::to_string(&descriptor.sign(|message| signing.sign(message).to_bytes()))?)
}

/// Asks a directory to say of an exit bridge that it serves, signed by whoever `sign` is.
async fn attestation(
    directory: &Directory,
    identity: &[u8; 32],
    previous: Option<SignedDocument>,
    sign: impl Fn(&[u8]) -> [u8; 64],
) -> anyhow::Result<Result<(SignedDocument, Attestation), String>> {
    let published = to_millis(SystemTime::now());
    let to = directory.address.clone();
    let request = AttestationRequest { identity: *identity, directory: to, published, previous };
    let (status, answer) = directory.post(ATTESTATIONS, &serde_json::to_string(&request.sign(sign))?).await?;
    if status != 200 {
        return Ok(Err(code(&answer)?));
    }
    let signed = serde_json::from_str(&answer)?;
    let seen = Attestation::verify(&signed)?;
    Ok(Ok((signed, seen)))
}

/// The code of an answer that is an error.
fn code(body: &str) -> anyhow::Result<String> {
    Ok(serde_json::from_str::<ErrorBody>(body)?.error.code)
}

pub fn cases(suite: &mut Suite) {
    suite.case("a client that knows only the directory opens the blocked page", async |lab| {
        let directory = lab.directory().run().await?;
        let bridge = lab.bridge().onion().registers_with(&directory).run().await?;
        let client = lab.client().asks(&directory).run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        let origin = lab.origins.blocking_tor_exits();
        let page = client.get(&origin.url("/")).await?;
        ensure!(page.status == 200, "{page:?}");
        ensure!(origin.last_peer_ip() == Some(bridge.ip), "the origin saw {:?}", origin.last_peer_ip());
        let bulk = lab.origins.open().url("/bulk/20000000");
        client.get(&bulk).await?.is_bulk(20_000_000)?;
        let parallel = lab.origins.open().url("/bulk/1000000");
        let pages = try_join_all((0..10).map(|_| client.get(&parallel))).await?;
        pages.iter().try_for_each(|page| page.is_bulk(1_000_000))?;
        client.upload(lab.origins.open(), "/sink", 5_000_000).await?;
        Ok(())
    });

    suite.case("a circuit exit bridge is found, too, and withdraws when it ends", async |lab| {
        let directory = lab.directory().run().await?;
        let mut bridge = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        let client = lab.client().asks(&directory).run().await?;
        let page = client.get(&lab.origins.open().url("/peer")).await?;
        ensure!(page.text.trim() == bridge.ip.to_string(), "{page:?}");
        bridge.process.signal(Signal::SIGTERM);
        // Nothing to drain: only the good-bye takes time.
        bridge.process.exit_code(Duration::from_secs(15)).await?;
        directory.until_handed_out(&bridge.line, false, WITHDRAWN_WITHIN).await
    });

    suite.case("a dead exit bridge is replaced by another one, and soon given to nobody", async |lab| {
        let directory = lab.directory().run().await?;
        let one = lab.bridge().registers_with(&directory).run().await?;
        let client = lab.client().asks(&directory).run().await?;
        let peer = lab.origins.open().url("/peer");
        directory.until_handed_out(&one.line, true, SOON).await?;
        ensure!(client.get(&peer).await?.text.trim() == one.ip.to_string(), "not through the exit bridge");
        // The client knows one exit bridge. It dies; another one is born.
        one.process.signal(Signal::SIGKILL);
        let died = Instant::now();
        let two = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&two.line, true, SOON).await?;
        let found = loop {
            let page = client.get(&peer).await?;
            if page.status == 200 {
                break page;
            }
            ensure!(died.elapsed() < Duration::from_secs(120), "no other exit bridge was found: {page:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        ensure!(found.text.trim() == two.ip.to_string(), "{found:?}");
        said(&client.process, "an exit bridge was reported", Duration::from_secs(10)).await?;
        directory.until_handed_out(&one.line, false, HANDED_OUT_FOR.saturating_sub(died.elapsed())).await?;
        Ok(())
    });

    suite.case("a directory that is killed loses nothing that it accepted", async |lab| {
        let mut directory = lab.directory().run().await?;
        let bridge = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        let bodies = (0..300).map(registration).collect::<Result<Vec<_>, _>>()?;
        let registering = async {
            let mut accepted = Vec::new();
            for body in &bodies {
                match directory.post(DESCRIPTORS, body).await {
                    Ok((200, answer)) => {
                        serde_json::from_str::<Registered>(&answer)?;
                        accepted.push(body);
                    }
                    // It is dead.
                    _ => break,
                }
            }
            anyhow::Ok(accepted)
        };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            directory.process.signal(Signal::SIGKILL);
        };
        let (accepted, ()) = tokio::join!(registering, killing);
        let accepted = accepted?;
        ensure!(!accepted.is_empty() && accepted.len() < bodies.len(), "{} accepted", accepted.len());
        ensure!(directory.process.exit_code(Duration::from_secs(5)).await?.is_none(), "it was not killed");
        directory = directory.start_again().await?;
        for body in accepted {
            let (status, answer) = directory.post(DESCRIPTORS, body).await?;
            ensure!(status == 409 && code(&answer)? == "descriptor_replayed", "{status}: {answer}");
        }
        ensure!(directory.hands_out(&bridge.line).await?, "the exit bridge is not handed out any more");
        // And one that dies while the directory is down is not handed out for longer than it says.
        bridge.process.signal(Signal::SIGKILL);
        let died = Instant::now();
        directory = directory.start_again().await?;
        directory
            .until_handed_out(&bridge.line, false, HANDED_OUT_FOR.saturating_sub(died.elapsed()))
            .await?;
        Ok(())
    });

    suite.case("egress addresses that are blocked anyway, or taken, are not handed out", async |lab| {
        let directory = lab.directory().run().await?;
        let relay = lab.net.relays().last().expect("a relay").address;
        let ours = lab.bridge();
        let bad = ours.registers_with(&directory).set("egress_address", relay.to_string()).run().await?;
        let good = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&good.line, true, SOON).await?;
        let same = lab.bridge().registers_with(&directory).set("egress_address", good.ip.to_string());
        let same = same.run().await?;
        for (bridge, why) in [(&bad, "that of a Tor relay"), (&same, "has the same egress address")] {
            bridge.said("registered", why, SOON).await?;
            ensure!(!directory.hands_out(&bridge.line).await?, "it is handed out all the same");
        }
        ensure!(directory.hands_out(&good.line).await?, "the first one lost its place");
        Ok(())
    });

    suite.case("a private egress address is not handed out", async |lab| {
        let directory = lab.directory().allow_no_private_egress().run().await?;
        // Its line names no address: nothing but the test finds out where it leaves from.
        let bridge = lab.bridge().onion().registers_with(&directory).run().await?;
        bridge.said("registered", "its egress address is private", SOON).await?;
        ensure!(!directory.hands_out(&bridge.line).await?, "it is handed out all the same");
        Ok(())
    });

    suite.case("who takes all places of the echo takes nobody off the ring", async |lab| {
        let directory = lab.directory().run().await?;
        let bridge = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        eebt_tor::raise_file_limit();
        let (from, to) = (lab.net.spare_ip(), directory.echo);
        let connect = async || -> anyhow::Result<TcpStream> {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(from, 0))?;
            // One that waits in the kernel's queue is none that waits here.
            Ok(tokio::time::timeout(Duration::from_secs(5), socket.connect(to)).await??)
        };
        // New ones come, old ones leave; 1,100 are there all the time and say nothing.
        let flood = async {
            let mut idle = VecDeque::new();
            loop {
                for _ in 0..100 {
                    idle.extend(connect().await.ok());
                }
                while idle.len() > 1100 {
                    idle.pop_front();
                }
                if idle.len() >= 1100 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        // Longer than one is handed out whose tests fail.
        let watch = async {
            let start = Instant::now();
            while start.elapsed() < HANDED_OUT_FOR + Duration::from_secs(10) {
                ensure!(directory.hands_out(&bridge.line).await?, "off the ring after {:?}", start.elapsed());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        };
        tokio::select! { () = flood => Ok(()), watched = watch => watched }
    });

    suite.case("exit bridges that a directory gave are used on when it is gone", async |lab| {
        // A lease that is over soon: a client takes it as a minute.
        let lease = toml::Table::from_iter([
            ("lease".into(), "1s".into()),
            ("reserve".into(), 0.into()),
            ("private".into(), 0.into()),
        ]);
        let mut directory = lab.directory().set("hand_out", lease).run().await?;
        let bridge = lab.bridge().registers_with(&directory).run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        let client = lab.client().asks(&directory).run().await?;
        let peer = lab.origins.open().url("/peer");
        ensure!(client.get(&peer).await?.text.trim() == bridge.ip.to_string(), "not through the exit bridge");
        directory.process.signal(Signal::SIGKILL);
        directory.process.exit_code(Duration::from_secs(5)).await?;
        let works = async |who: &str| {
            for page in [client.get(&peer).await?, client.get_as(who, &peer).await?] {
                ensure!(page.status == 200 && page.text.trim() == bridge.ip.to_string(), "{who}: {page:?}");
            }
            anyhow::Ok(())
        };
        works("bob").await?;
        said(&client.process, "a directory gave nothing", Duration::from_secs(150)).await?;
        works("carol").await
    });

    suite.case(
        "a client gets the same exit bridges again, and bridge lines work without a directory",
        async |lab| {
            let mut directory = lab.directory().run().await?;
            let bridge = lab.bridge().registers_with(&directory).run().await?;
            directory.until_handed_out(&bridge.line, true, SOON).await?;
            let ticket = directory.ticket().await?;
            let first = directory.ask(&ticket, Wishes::default()).await?;
            let again = directory.ask(&ticket, Wishes::default()).await?;
            ensure!(first.exit_bridges == again.exit_bridges, "others than before");
            directory.process.signal(Signal::SIGKILL);
            directory.process.exit_code(Duration::from_secs(5)).await?;
            let client = lab.client().asks(&directory).via(&bridge).run().await?;
            ensure!(client.get(&lab.origins.open().url("/")).await?.status == 200);
            Ok(())
        },
    );

    suite.case("a client that changes its mind too often makes another ticket", async |lab| {
        let directory = lab.directory().run().await?;
        let bridge = lab.bridge().registers_with(&directory).set("country", "SE").run().await?;
        directory.until_handed_out(&bridge.line, true, SOON).await?;
        let peer = lab.origins.open().url("/peer");
        let mut client = lab.client().asks(&directory).run().await?;
        ensure!(client.get(&peer).await?.status == 200);
        let state = client.dir.join("state");
        let first = ticket_in(&state, &directory)?;
        directory.ask(&first, Wishes { port: Some(80), ..Wishes::default() }).await?;
        client.process.signal(Signal::SIGTERM);
        client.process.exit_code(Duration::from_secs(10)).await?;
        // Its third wish with this ticket.
        let client = lab.client().asks(&directory).set("country", "SE");
        let client = client.set("state_dir", state.display().to_string()).run().await?;
        ensure!(client.get(&peer).await?.text.trim() == bridge.ip.to_string());
        ensure!(ticket_in(&state, &directory)?.key != first.key, "the same ticket");
        Ok(())
    });

    suite.case(
        "the directory learns no target and no client, and says nothing of exit bridges",
        async |lab| {
            let mut directory = lab.directory().log("trace").run().await?;
            let bridge = lab.bridge().onion().registers_with(&directory).run().await?;
            directory.until_handed_out(&bridge.line, true, SOON).await?;
            let client = lab.client().asks(&directory).run().await?;
            let origin = lab.origins.blocking_tor_exits();
            let port = origin.addr().port();
            let url = format!("http://{}:{port}/planted-path", origin.addr().ip());
            let visit = async {
                // As somebody new each time, until the directory has been seen to test the exit bridge as well.
                let start = Instant::now();
                for n in 0.. {
                    ensure!(client.get_as(&format!("person{n}"), &url).await?.status == 200);
                    if start.elapsed() > Duration::from_secs(12) {
                        break;
                    }
                }
                anyhow::Ok(())
            };
            let seen = connections_while(visit, &directory, &client.process).await?;
            seen.are_with_relays_and_exit_bridges_only(lab, &directory, bridge.ip)?;
            let visitors = peers_of(directory.echo).await?;
            ensure!(!visitors.is_empty(), "no test was seen");
            ensure!(
                visitors.iter().all(|from| from.ip() == bridge.ip),
                "the echo was visited by {visitors:?}"
            );
            let log = directory.process.stderr();
            let dir = directory.config.parent().expect("folder");
            let mut store = Vec::new();
            for name in ["directory.db", "directory.db-wal"] {
                store.extend(std::fs::read(dir.join(name)).unwrap_or_default());
            }
            ensure!(!log.is_empty() && store.len() > 4096, "nothing to look at");
            let holds =
                |hay: &[u8], needle: &str| hay.windows(needle.len()).any(|at| at == needle.as_bytes());
            let Reach::Onion(reach) = &bridge.line.reach else { anyhow::bail!("an onion exit bridge") };
            let ticket = serde_json::to_value(ticket_in(&client.dir.join("state"), &directory)?)?;
            let key = ticket["key"].as_str().expect("a string").to_owned();
            let target = origin.addr().to_string();
            let egress = bridge.ip.to_string();
            let onion = reach.to_string();
            let secrets = [&target, "planted-path", &key, &egress, &onion, onion.trim_end_matches(".onion")];
            for secret in secrets {
                ensure!(!log.contains(secret), "the log holds {secret}");
            }
            for secret in [&target, "planted-path", &key] {
                ensure!(!holds(&store, secret), "the store holds {secret}");
            }
            // The looking works: the store knows the exit bridge.
            ensure!(
                holds(&store, &onion) && holds(&store, &egress),
                "the store does not know the exit bridge"
            );
            // What fails is logged more eagerly than what works.
            bridge.process.signal(Signal::SIGKILL);
            directory.until_handed_out(&bridge.line, false, HANDED_OUT_FOR).await?;
            let log = directory.process.stderr();
            ensure!(log.contains("an exit bridge did not pass"), "no test failed");
            for secret in secrets {
                let found: Vec<&str> = log.lines().filter(|line| line.contains(secret)).take(3).collect();
                ensure!(found.is_empty(), "the log of a test that failed holds {secret}: {found:#?}");
            }
            ensure!(directory.process.is_alive());
            Ok(())
        },
    );

    suite.case("a directory signs since when an exit bridge serves, for nobody but that one", async |lab| {
        let directory = lab.directory().run().await?;
        let bridge = lab.bridge().onion().registers_with(&directory).set("attest", true);
        let mut bridge = bridge.run().await?;
        bridge.said("attested", "directory=1", SOON).await?;
        ensure!(!bridge.process.stderr().contains(&directory.address.to_string()), "its log says where");
        // What it was told is told to its key again, and holds against the directory's address alone.
        let keys = BridgeKeys::load(&bridge.config.parent().context("a folder")?.join("keys"))?;
        let sign = |message: &[u8]| keys.sign(ReachKind::Onion, message);
        let identity = keys.onion_reach().service;
        let (first, seen) = attestation(&directory, &identity, None, sign).await?.map_err(Error::msg)?;
        ensure!(seen.directory == directory.address && seen.identity == identity, "{seen:?}");
        ensure!(seen.egress == bridge.ip && seen.from == seen.until, "{seen:?}");
        let (_, longer) = attestation(&directory, &identity, Some(first), sign).await?.map_err(Error::msg)?;
        ensure!(longer.from == seen.from && longer.until > seen.until, "{seen:?} {longer:?}");
        // A stranger is told nothing of it; nor is who does not serve, or is not registered.
        let stranger = key(1).verifying_key().to_bytes();
        let by_stranger = |message: &[u8]| key(1).sign(message).to_bytes();
        let refused = async |identity, expected: &str| {
            let code = attestation(&directory, identity, None, by_stranger).await?.err();
            ensure!(code.as_deref() == Some(expected), "{code:?} and not {expected}");
            Ok(())
        };
        refused(&identity, "signature_bad").await?;
        refused(&stranger, "exit_bridge_unknown").await?;
        ensure!(directory.post(DESCRIPTORS, &registration(1)?).await?.0 == 200);
        refused(&stranger, "not_serving").await?;
        // It asks once more before it says good-bye, and not after.
        bridge.process.signal(Signal::SIGTERM);
        bridge.process.exit_code(Duration::from_secs(15)).await?;
        let log = bridge.process.stderr();
        ensure!(log.contains("attested for longer") && log.contains("withdrawn"), "{log}");
        let code = attestation(&directory, &identity, None, sign).await?.err();
        ensure!(code.as_deref() == Some("not_serving"), "{code:?}");
        Ok(())
    });

    suite.case("a pool's exit bridges are given to nobody but its operator", async |lab| {
        let shares = toml::Table::from_iter([("reserve".into(), 0.into()), ("private".into(), 100.into())]);
        let directory = lab.directory().set("hand_out", shares).run().await?;
        let bridge = lab.bridge().registers_with(&directory).run().await?;
        directory.command(&["pool", "set", "friends", "--size", "1"]).await?;
        let start = Instant::now();
        let lines = loop {
            let lines = directory.command(&["pool", "show", "friends"]).await?;
            if !lines.is_empty() {
                break lines;
            }
            ensure!(start.elapsed() < SOON, "the pool stays empty");
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        ensure!(lines.trim() == bridge.line.to_string(), "{lines}");
        ensure!(!directory.hands_out(&bridge.line).await?, "it is handed out as well");
        // What the operator copies is what his friends need.
        let client = lab.client().via_line(&lines.trim().parse()?).run().await?;
        let page = client.get(&lab.origins.open().url("/peer")).await?;
        ensure!(page.text.trim() == bridge.ip.to_string(), "{page:?}");
        Ok(())
    });

    suite.case("a client of two directories works with the one that answers", async |lab| {
        let dead = lab.directory().run().await?;
        let alive = lab.directory().run().await?;
        let bridge = lab.bridge().registers_with(&alive).run().await?;
        alive.until_handed_out(&bridge.line, true, SOON).await?;
        dead.process.signal(Signal::SIGKILL);
        let client = lab.client().asks(&dead).asks(&alive).run().await?;
        let page = client.get(&lab.origins.open().url("/peer")).await?;
        ensure!(page.text.trim() == bridge.ip.to_string(), "{page:?}");
        Ok(())
    });

    suite.case("two replicas on one PostgreSQL give a client the same answer", async |lab| {
        let postgres = testnet::Postgres::start()?;
        let store = postgres.database()?;
        let service = lab.directory().set("store", store.clone()).run().await?;
        let replica = lab.directory().set("store", store).replica_of(&service).run().await?;
        let mut bridges = Vec::new();
        for _ in 0..4 {
            bridges.push(lab.bridge().registers_with(&service).run().await?);
        }
        for bridge in &bridges {
            service.until_handed_out(&bridge.line, true, SOON).await?;
            replica.until_handed_out(&bridge.line, true, SOON).await?;
        }
        // What one replica has written the other follows within a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut given = std::collections::HashSet::new();
        for _ in 0..10 {
            let ticket = service.ticket().await?;
            let one = service.ask(&ticket, Wishes::default()).await?.exit_bridges;
            let other = replica.ask(&ticket, Wishes::default()).await?.exit_bridges;
            ensure!(one == other, "not the same");
            ensure!(one.len() == 3, "{} exit bridges of 4", one.len());
            given.extend(one.iter().map(|given| given.bridge_line.to_string()));
        }
        ensure!(given.len() == 4, "{} of 4 were given to anybody", given.len());
        Ok(())
    });

    suite.case("two replicas behind the onion service of a C tor are one directory", async |_| {
        // Where C tor and Arti agree on how long a time period of an onion service is.
        let net = TestNet::builder().voting_interval(15).consensus_param("hsdir_interval", 6);
        let lab = Lab::on(net.start().await?).await?;
        let postgres = testnet::Postgres::start()?;
        let store = postgres.database()?;
        let status: Vec<SocketAddr> = (0..2).map(|_| SocketAddr::new(lab.net.spare_ip(), 9200)).collect();
        let replica =
            |n: usize| lab.directory().set("store", store.clone()).set("status", status[n].to_string());
        let (one, two) = (replica(0), replica(1));
        let service = lab.c_tor_service(&[one.listens(), two.listens()]).await?;
        let (one, two) = (one.behind(&service).run().await?, two.behind(&service).run().await?);
        ensure!(one.address == service.address && two.address == service.address, "another address");
        // Either of them may test it.
        let bridge = lab.bridge().registers_with(&one).opens(two.echo).run().await?;
        for replica in [&one, &two] {
            replica.until_handed_out(&bridge.line, true, SOON).await?;
        }
        let client = lab.client().asks(&one).run().await?;
        let page = client.get(&lab.origins.blocking_tor_exits().url("/peer")).await?;
        ensure!(page.text.trim() == bridge.ip.to_string(), "{page:?}");
        let ticket = one.ticket().await?;
        let same = one.ask(&ticket, Wishes::default()).await?.exit_bridges;
        ensure!(same == two.ask(&ticket, Wishes::default()).await?.exit_bridges, "not the same");
        // Who comes to the address comes to either, and what one of them took the other one knows.
        for n in 0..48 {
            let body = registration(n)?;
            let (status, answer) = lab.post_to_onion(&service.address, DESCRIPTORS, &body).await?;
            ensure!(status == 200, "{status}: {answer}");
            for replica in [&one, &two] {
                let (status, answer) = replica.post(DESCRIPTORS, &body).await?;
                ensure!(status == 409 && code(&answer)? == "descriptor_replayed", "{status}: {answer}");
            }
        }
        for (replica, status) in [&one, &two].into_iter().zip(status) {
            let came = "hebtor_directory_requests_total{what=\"registered\"}";
            ensure!(replica.metric(status, came).await? >= 8, "nobody came to one of them");
            let log = replica.process.stderr();
            let Reach::Circuit(reach) = &bridge.line.reach else { anyhow::bail!("a circuit exit bridge") };
            // What is written to PostgreSQL is in no log either.
            for secret in [bridge.ip.to_string(), reach.addresses[0].to_string()] {
                ensure!(log.contains("DEBUG") && !log.contains(&secret), "a log holds {secret}");
            }
        }
        lab.shutdown(false).await?;
        Ok(())
    });

    suite.case("the unit of a directory is one that systemd takes", async |lab| {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/hebtor-directory.service");
        let program = tests::binary("hebtor-directory").display().to_string();
        let unit = std::fs::read_to_string(unit)?.replace("/usr/local/bin/hebtor-directory", &program);
        let path = lab.folder("unit").join("hebtor-directory.service");
        std::fs::write(&path, &unit)?;
        let verify = Command::new("systemd-analyze").arg("verify").arg(&path).output().await?;
        let complaints = String::from_utf8_lossy(&verify.stderr);
        let of_ours = |line: &&str| line.contains("hebtor-directory.service") && !line.contains("User=");
        ensure!(complaints.lines().filter(of_ours).count() == 0, "{complaints}");
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("ExecStart")?;
        ensure!(start.contains(" run --config /etc/hebtor-directory/config.toml"), "{start}");
        Ok(())
    });
}

/// Waits until a program's log holds this.
async fn said(process: &Running, what: &str, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    while !process.stderr().contains(what) {
        ensure!(start.elapsed() < limit, "it did not say {what:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The TCP connections of a directory and of a client, both ends of each: their own first.
#[derive(Default)]
struct Connections {
    directory: BTreeSet<(SocketAddr, SocketAddr)>,
    client: BTreeSet<(SocketAddr, SocketAddr)>,
}

/// What connections they have while something is done.
async fn connections_while(
    done: impl Future<Output = anyhow::Result<()>>,
    directory: &Directory,
    client: &Running,
) -> anyhow::Result<Connections> {
    let mut seen = Connections::default();
    let (of_directory, of_client) = (directory.process.pid().context("pid")?, client.pid().context("pid")?);
    let watch = async {
        loop {
            match (connections_of(of_directory).await, connections_of(of_client).await) {
                (Ok(of_directory), Ok(of_client)) => {
                    seen.directory.extend(of_directory);
                    seen.client.extend(of_client);
                }
                (Err(error), _) | (_, Err(error)) => break error,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! { done = done => done?, error = watch => return Err(error) }
    Ok(seen)
}

impl Connections {
    fn are_with_relays_and_exit_bridges_only(
        &self,
        lab: &Lab,
        directory: &Directory,
        exit_bridge: std::net::IpAddr,
    ) -> anyhow::Result<()> {
        let relays: HashSet<SocketAddr> = lab.net.relays().iter().map(|relay| relay.or_addr()).collect();
        let to_relays = |all: &BTreeSet<_>| all.iter().filter(|(_, to)| relays.contains(to)).count();
        ensure!(to_relays(&self.directory) > 0 && to_relays(&self.client) > 0, "the looking does not work");
        for (ours, theirs) in &self.directory {
            let tested = *ours == directory.echo && theirs.ip() == exit_bridge;
            // This case asks it on loopback.
            let by_us = *ours == directory.api;
            ensure!(relays.contains(theirs) || tested || by_us, "the directory at {ours} talks to {theirs}");
            let by_client = self.client.iter().any(|(from, to)| from == theirs || to == ours);
            ensure!(!by_client, "the client came to {ours} by itself");
        }
        Ok(())
    }
}

/// The ticket for a directory that a client keeps in its state.
fn ticket_in(state: &Path, directory: &Directory) -> anyhow::Result<Ticket> {
    let tickets: serde_json::Value = serde_json::from_slice(&std::fs::read(state.join("tickets.json"))?)?;
    Ok(serde_json::from_value(tickets[directory.address.to_string()]["ticket"].clone())?)
}
