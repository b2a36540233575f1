//! Mode `auto`: blocked pages open by themselves, open ones stay on Tor, and nothing is done twice.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use testnet::{Hit, Origin, Origins, OriginsConfig, TestNet, TurnAway};
use tests::{Bridge, Client, Lab};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_socks::tcp::Socks5Stream;

use crate::browsers::addresses;
use crate::tls::until_said;
use crate::{Suite, leak};

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

    suite.case("auto: 429, 451 and 503 with a refusal's words are refusals, too", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let origin = lab.origins.blocking_tor_exits();
        for (person, status) in [("a", 403), ("b", 429), ("c", 451), ("d", 503)] {
            origin.clear_hits();
            let page = client.get_as(person, &origin.url(&format!("/refuse/{status}"))).await?;
            ensure!(page.status == 200, "{status}: {page:?}");
            ensure!(visitors(origin) == [lab.net.exit_egress_ip(), bridge.ip], "{:?}", visitors(origin));
        }
        Ok(())
    });

    suite.case("auto: what one site learns of its visitor, another site cannot read", async |lab| {
        let (bridge, client) = auto(lab).await?;
        let origin = lab.origins.blocking_tor_exits();
        let tor = lab.net.exit_egress_ip();
        // Both have a quiet connection open over Tor.
        let mut alice = Quiet::open(&client, "alice.example", origin).await?;
        let mut bob = Quiet::open(&client, "bob.example", origin).await?;
        origin.clear_hits();
        ensure!(client.get_as("alice.example", &origin.url("/")).await?.status == 200);
        ensure!(visitors(origin) == [tor, bridge.ip], "{:?}", visitors(origin));
        ensure!(alice.ends(Duration::from_secs(5)).await, "alice's goes to the exit bridge from now on");
        ensure!(!bob.ends(Duration::from_secs(3)).await, "bob's is nobody's business");
        ensure!(bob.ask(origin).await? == tor.to_string());
        drop(bob);
        origin.clear_hits();
        ensure!(client.get_as("bob.example", &origin.url("/")).await?.status == 200);
        ensure!(visitors(origin) == [tor, bridge.ip], "bob's client knew: {:?}", visitors(origin));
        origin.clear_hits();
        for person in ["alice.example", "bob.example"] {
            ensure!(client.get_as(person, &origin.url("/")).await?.status == 200);
        }
        ensure!(visitors(origin) == [bridge.ip; 2], "{:?}", visitors(origin));
        // Nor whoever has no credentials.
        origin.clear_hits();
        ensure!(client.get(&origin.url("/")).await?.status == 200);
        ensure!(visitors(origin) == [tor, bridge.ip], "{:?}", visitors(origin));
        Ok(())
    });

    suite.case(
        "auto: all parts of a page share an exit bridge, and a lease that ends takes all along",
        async |lab| {
            let bridges = [lab.bridge(), lab.bridge(), lab.bridge()];
            let more = OriginsConfig {
                listen_ip: addresses(lab, 7)?,
                ca_dir: Some(lab.folder("more")),
                ..OriginsConfig::on_network(&lab.net)
            };
            let more = Origins::start(more).await?;
            let hosts = [lab.origins.blocking_tor_exits(), more.blocking_tor_exits()];
            let mut running = Vec::new();
            for bridge in bridges {
                running.push(bridge.opens(hosts[1].addr()).run().await?);
            }
            let file = lab.folder("lines").join("bridges.txt");
            let offer = |bridges: &[&Bridge]| -> anyhow::Result<()> {
                let lines: String = bridges.iter().map(|b| format!("{}\n", b.line)).collect();
                Ok(std::fs::write(&file, lines)?)
            };
            offer(&running.iter().collect::<Vec<_>>())?;
            let client =
                lab.client().set("mode", "auto").set("bridge_file", file.display().to_string()).run().await?;
            let people: Vec<String> = (0..8).map(|n| format!("site{n}.example")).collect();
            // The address that all hosts of a page see; it must be one.
            let address = async |person: &str| -> anyhow::Result<IpAddr> {
                let mut seen = BTreeSet::new();
                for host in hosts.iter().chain(&hosts) {
                    host.clear_hits();
                    ensure!(client.get_as(person, &host.url("/")).await?.status == 200);
                    seen.extend(host.last_peer_ip());
                }
                ensure!(seen.len() == 1, "{person} came from {seen:?}");
                seen.first().copied().context("nobody came")
            };
            let mut before = Vec::new();
            for person in &people {
                before.push(address(person).await?);
            }
            let used: BTreeSet<IpAddr> = before.iter().copied().collect();
            ensure!(used.len() >= 2, "all had the same address: {used:?}");

            // The first one's lease ends: who had it gets another, for all hosts, and nobody else moves.
            let ended = before[0];
            let mut open = Quiet::open(&client, &people[0], hosts[0]).await?;
            let rest: Vec<&Bridge> = running.iter().filter(|b| b.ip != ended).collect();
            offer(&rest)?;
            until_said(&client, "bridge_file read again").await?;
            for (person, before) in people.iter().zip(&before) {
                let now = address(person).await?;
                ensure!(now != ended, "{person} still has the one whose lease is over");
                ensure!(*before == ended || now == *before, "{person} had {before}, and has {now}");
            }
            ensure!(open.ask(hosts[0]).await? == ended.to_string(), "what was open goes on");
            Ok(())
        },
    );

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

    suite.case_if(
        leak::can_watch(),
        "auto: an origin that refuses connections from Tor opens, with TLS and without (needs root)",
        async |lab| {
            let said = leak::in_own_network(lab, REFUSED).await?;
            ensure!(said.matches("opens: ").count() == 4, "{said}");
            Ok(())
        },
    );

    suite.case("auto: an origin that denies Tor access in TLS opens", async |lab| {
        let config = OriginsConfig {
            turn_away: Some(TurnAway::Alert),
            ca_dir: None,
            ..OriginsConfig::on_network(&lab.net)
        };
        let origins = Origins::start(config).await?;
        let origin = origins.blocking_tor_exits_tls();
        let bridge = lab.bridge().opens(origin.addr()).run().await?;
        let client = lab.client().via(&bridge).set("mode", "auto").run().await?;
        let ca = origins.ca_file().display().to_string();
        for expected in [vec![lab.net.exit_egress_ip(), bridge.ip], vec![bridge.ip]] {
            origin.clear_hits();
            ensure!(client.curl(&origin.url("/"), &["--cacert", &ca]).await?.status == 200);
            ensure!(visitors(origin) == expected, "{:?}", visitors(origin));
        }
        ensure!(client.process.stderr().contains("it denies Tor access in TLS"));
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

    suite.case_once(
        "auto: a slow origin is never taken for one that blocks, on a network as slow as Tor",
        async |_| {
            let lab = Lab::on(TestNet::builder().latency(HOP).start().await?).await?;
            let result = slow(&lab).await;
            lab.shutdown(false).await?;
            result
        },
    );

    suite.case(
        "auto: the first blocked fetch costs one exchange over Tor more, and the second nothing, on a network as slow as Tor",
        async |_| {
            let lab = Lab::on(TestNet::builder().latency(HOP).start().await?).await?;
            let result = costs(&lab).await;
            lab.shutdown(false).await?;
            result
        },
    );
}

/// A connection over Tor that a program keeps for its next request.
struct Quiet(Socks5Stream<TcpStream>);

impl Quiet {
    /// Opens one as this user, and asks once.
    async fn open(client: &Client, user: &str, origin: &Origin) -> anyhow::Result<Self> {
        let stream = Socks5Stream::connect_with_password(client.proxy, origin.addr(), user, "x").await?;
        let mut quiet = Self(stream);
        quiet.ask(origin).await?;
        Ok(quiet)
    }

    /// The address that the origin sees.
    async fn ask(&mut self, origin: &Origin) -> anyhow::Result<String> {
        let request = format!("GET /peer HTTP/1.1\r\nHost: {}\r\n\r\n", origin.addr());
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = vec![0; 4096];
        let n = tokio::time::timeout(Duration::from_secs(20), self.0.read(&mut answer)).await??;
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
    }

    /// Whether it is over in that time.
    async fn ends(&mut self, within: Duration) -> bool {
        tokio::time::timeout(within, self.0.read(&mut [0])).await.is_ok()
    }
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

/// Names the case of [`refused`].
pub const REFUSED: &str = "refused";

/// In a network of its own, where the kernel refuses connections from Tor's exits to some origins.
pub async fn refused(lab: &Lab) -> anyhow::Result<()> {
    let (http, https) = (lab.origins.blocking_tor_exits(), lab.origins.blocking_tor_exits_tls());
    let (tor, to) = (lab.net.exit_egress_ip(), http.addr().ip());
    leak::run("nft", &["add", "table", "inet", "refuse"]).await?;
    let hook = "{ type filter hook output priority 0; }";
    leak::run("nft", &["add", "chain", "inet", "refuse", "out", hook]).await?;
    let rule = format!("ip saddr {tor} ip daddr {to} tcp flags & (syn | ack) == syn reject with tcp reset");
    leak::run("nft", &["add", "rule", "inet", "refuse", "out", &rule]).await?;
    let ca = lab.origins.ca_file().display().to_string();
    for optimistic in [true, false] {
        let bridge = lab.bridge().run().await?;
        let client =
            lab.client().via(&bridge).set("mode", "auto").set("optimistic", optimistic).run().await?;
        for origin in [http, https] {
            origin.clear_hits();
            for known in [false, true] {
                let page = client.curl(&origin.url("/"), &["--cacert", &ca]).await?;
                ensure!(page.status == 200, "{}, known {known}: {page:?}", origin.name());
            }
            ensure!(visitors(origin) == [bridge.ip; 2], "{}: {:?}", origin.name(), visitors(origin));
            eprintln!("opens: {}, optimistic {optimistic}", origin.name());
        }
        let log = client.process.stderr();
        let reasons = ["it refuses connections from Tor", "it takes no connections from Tor"];
        let verdicts = log.lines().filter(|line| reasons.iter().any(|reason| line.contains(reason))).count();
        ensure!(verdicts == 2 && log.matches(VERDICT).count() == 2, "{verdicts} verdicts:\n{log}");
        // What can have an effect, too: it never got there.
        let other = lab.client().via(&bridge).set("mode", "auto").set("optimistic", optimistic).run().await?;
        ensure!(other.curl(&http.url("/"), &["-d", "x=1"]).await?.status == 200);
    }
    Ok(())
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

/// Honest origins that take their time: up to nearly twice as long as clients wait before they ask an exit bridge too,
/// and never the same time twice. Half of them are late once: an exit bridge that asks next has its answer at once,
/// before Tor has; a false verdict would be made then. Half of those speak TLS, where the handshake is late.
async fn slow(lab: &Lab) -> anyhow::Result<()> {
    let patience = Duration::from_secs(2);
    let longest = patience * 7 / 4;
    let config = OriginsConfig {
        listen_ip: addresses(lab, 7)?,
        late_hello: Some(longest),
        ca_dir: Some(lab.folder("late")),
        ..OriginsConfig::on_network(&lab.net)
    };
    let late = Origins::start(config).await?;
    let (http, https) = (lab.origins.open(), late.open_tls());
    let bridge = lab.bridge().behind(HOP).await?.opens(https.addr()).run().await?;
    let client = lab.client().via(&bridge).set("mode", "auto").set("patience", "2s").run().await?;
    let ca = late.ca_file().display().to_string();
    [http, https].iter().for_each(|origin| origin.clear_hits());
    let span = u64::try_from(longest.as_millis())?;
    let fetches = futures::stream::iter(0..SLOW_FETCHES).map(|n| {
        let (client, ca) = (&client, ca.as_str());
        let after = n * 7919 % span;
        let url = match n % 4 {
            0 | 2 => https.url(&format!("/?n={n}")),
            1 => http.url(&format!("/late-once/{after}?n={n}")),
            _ => http.url(&format!("/late/{after}?n={n}")),
        };
        async move { client.curl(&url, &["--cacert", ca]).await }
    });
    let pages: Vec<_> = fetches.buffer_unordered(20).collect().await;
    for page in pages {
        let page = page?;
        ensure!(page.status == 200, "{page:?}");
    }
    // Until the last one that an exit bridge overtook has been judged.
    tokio::time::sleep(2 * patience).await;
    let asked = |origin: &Origin, beginning: &str| {
        let by_bridge = |hit: &&Hit| hit.peer_ip == bridge.ip && hit.path.starts_with(beginning);
        origin.hits().iter().filter(by_bridge).count()
    };
    let (later, overtaken, overtaken_tls) =
        (asked(http, "/late/"), asked(http, "/late-once/"), asked(https, "/?n="));
    let seen = format!(
        "an exit bridge was asked beside Tor {later} times, and overtook it {overtaken} times, {overtaken_tls} in TLS"
    );
    eprintln!("{seen}");
    ensure!(later > 5 && overtaken > 10 && overtaken_tls > 20, "{seen}");
    let verdicts = client.process.stderr().matches(VERDICT).count();
    ensure!(verdicts == 0, "{verdicts} false verdicts; {seen}");
    let peer = client.get(&http.url("/peer")).await.context("in the end")?;
    ensure!(peer.text == lab.net.exit_egress_ip().to_string(), "{peer:?}");
    Ok(())
}

/// How many fetches of each kind are timed.
const TIMED: usize = 15;

/// What a fetch that is refused to Tor costs more than one through an exit bridge alone, in exchanges over Tor.
async fn costs(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().behind(HOP).await?.run().await?;
    let client = |mode: &str| lab.client().via(&bridge).set("mode", mode);
    // It learns each time anew, like somebody who meets the site for the first time.
    let first = client("auto").set("verdict_lifetime", "1ms").run().await?;
    let again = client("auto").run().await?;
    let (always, never) = (client("always").run().await?, client("never").run().await?);
    let (blocking, open) = (lab.origins.blocking_tor_exits(), lab.origins.open());
    // From nothing to the whole answer, over SOCKS, as `user`.
    let fetch = async |client: &Client, origin: &Origin, user: &str| -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut stream = Socks5Stream::connect_with_password(client.proxy, origin.addr(), user, "x").await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", origin.addr());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(start.elapsed())
    };
    // Circuits are there, and those that are built ahead as well.
    for _ in 0..3 {
        for (client, origin) in [(&first, blocking), (&again, blocking), (&always, blocking), (&never, open)]
        {
            fetch(client, origin, "warm").await?;
            fetch(client, open, "warm").await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut took: [Vec<Duration>; 6] = Default::default();
    for n in 0..TIMED {
        for (at, (client, origin)) in
            [(&never, open), (&always, blocking), (&first, blocking), (&again, blocking)]
                .into_iter()
                .enumerate()
        {
            took[at].push(fetch(client, origin, "warm").await?);
        }
        // Somebody who comes for the first time at all.
        let newcomer = format!("newcomer{n}");
        took[4].push(fetch(&always, blocking, &newcomer).await?);
        took[5].push(fetch(&again, blocking, &newcomer).await?);
        // The circuits that are built for the next one are no part of what comes next.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let [exchange, always, first, again, new_always, new_auto] = took.map(|mut all| {
        all.sort();
        all[all.len() / 2].as_secs_f64() * 1000.0
    });
    let said = format!(
        "medians of {TIMED} in ms: one exchange over Tor {exchange:.0}, through an exit bridge {always:.0}, refused to Tor \
         {first:.0}, again {again:.0}; newcomers: through an exit bridge {new_always:.0}, refused to Tor {new_auto:.0}"
    );
    eprintln!("{said}");
    ensure!(first - always <= 1.25 * exchange, "{said}");
    ensure!(again - always <= 0.15 * exchange, "{said}");
    Ok(())
}
