//! C tor as distributions ship it, with `eebt attach` beside it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use testnet::Origin;
use tests::{Bridge, CTor, Dns, Lab, Running, binary, patched_tor};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("eebt attach opens a page for a C tor, and leaves it as it was", async |lab| {
        let (bridge, tor) = (lab.bridge().run().await?, lab.ctor("tor".as_ref(), "").await?);
        let (blocking, open) = (lab.origins.blocking_tor_exits(), lab.origins.open());
        let before = settings(&tor).await?;
        ensure!(tor.way.get(&blocking.url("/")).await?.status == 403);

        let mut attached = attach(lab, &tor, &[&bridge]).await?;
        for person in 0..4 {
            // Each by a circuit of his own, more of them than are kept ready.
            let page = tor.way.get_as(&format!("person{person}"), &blocking.url("/")).await?;
            ensure!(page.status == 200, "{page:?}");
            ensure!(blocking.last_peer_ip() == Some(bridge.ip), "{:?}", blocking.last_peer_ip());
        }
        // What was not chosen goes on as before.
        ensure!(tor.way.get(&open.url("/")).await?.status == 200);
        ensure!(open.last_peer_ip() == Some(lab.net.exit_egress_ip()), "{:?}", open.last_peer_ip());

        ensure!(tor.circuits_to(&bridge.line).await? > 0);
        stopped(&mut attached).await?;
        let after = settings(&tor).await?;
        ensure!(after == before, "{after}");
        // Used ones are gone, too: any stream could be put on them.
        ensure!(tor.circuits_to(&bridge.line).await? == 0);
        ensure!(tor.way.get(&blocking.url("/")).await?.status == 403);
        Ok(())
    });

    suite.case("names that were chosen leave through an exit bridge, and no others", names);

    suite.case(
        "a stream that was open before its host was chosen does not go on by plain exits",
        async |lab| {
            let (bridge, tor) = (lab.bridge().run().await?, lab.ctor("tor".as_ref(), "").await?);
            let (operator, open) = (lab.operator(), lab.origins.open());
            let (lines, hosts) = ([&bridge.line], [open.addr().ip().to_string()]);
            let attach = operator.attach(&tor, &lines, &hosts, &[]);
            let url = open.url("/bulk/200000000");
            let (broken, attached) = tor.way.curl_meanwhile(&url, &["--limit-rate", "2M"], attach).await?;
            let _attached = attached?;
            ensure!(
                broken.size > 0 && broken.exit_code != 0 && broken.took < Duration::from_secs(90),
                "{broken:?}"
            );
            ensure!(tor.way.get(&open.url("/")).await?.status == 200);
            ensure!(open.last_peer_ip() == Some(bridge.ip), "{:?}", open.last_peer_ip());
            Ok(())
        },
    );

    suite.case("eebt attach that dies at any step opens no other way for what is mapped", async |lab| {
        let (bridge, tor) = (lab.bridge().run().await?, lab.ctor("tor".as_ref(), "").await?);
        let (operator, origin) = (lab.operator(), lab.origins.blocking_tor_exits());
        let (before, hosts) = (settings(&tor).await?, [origin.addr().ip().to_string()]);
        for (point, status) in [("mapped-written", 403), ("mapped", 200)] {
            let mut dies = operator.attach_until(Some(point), &tor, &[&bridge.line], &hosts, &[])?;
            ensure!(dies.exit_code(Duration::from_secs(60)).await?.is_none(), "{point}: {}", dies.stderr());
            let page = tor.way.get(&origin.url("/")).await?;
            ensure!(page.status == status, "{point}: {page:?}");
            let egress = if status == 200 { bridge.ip } else { lab.net.exit_egress_ip() };
            ensure!(origin.last_peer_ip() == Some(egress), "{point}: {:?}", origin.last_peer_ip());
            let undone = operator.run(&["attach", "--undo", "--json"]).await?;
            ensure!(undone.trim() == r#"{"undone":1}"#, "{point}: {undone}");
            ensure!(settings(&tor).await? == before, "{point}");
            ensure!(tor.way.get(&origin.url("/")).await?.status == 403, "{point}");
        }
        // The next one goes on where one was killed, and the host leaves by nothing else meanwhile.
        let mut dies = operator.attach_until(Some("mapped"), &tor, &[&bridge.line], &hosts, &[])?;
        dies.exit_code(Duration::from_secs(60)).await?;
        origin.clear_hits();
        let (lines, url) = ([&bridge.line], origin.url("/"));
        let attaching = operator.attach(&tor, &lines, &hosts, &[]);
        tokio::pin!(attaching);
        let mut attached = loop {
            tokio::select! {
                attached = &mut attaching => break attached?,
                page = tor.way.get(&url) => { page?; }
            }
        };
        ensure!(attached.stderr().contains("went on"), "{}", attached.stderr());
        let hits = origin.hits();
        ensure!(!hits.is_empty() && hits.iter().all(|hit| hit.peer_ip == bridge.ip), "{hits:?}");
        stopped(&mut attached).await?;
        ensure!(settings(&tor).await? == before);
        Ok(())
    });

    suite.case(
        "a C tor that asks for too much on one circuit does not give the exit bridge up",
        async |lab| {
            let mut rate = toml::Table::new();
            rate.insert("per_second".into(), 0.5.into());
            rate.insert("burst".into(), 2.0.into());
            let mut limits = toml::Table::new();
            limits.insert("new_streams".into(), rate.into());
            let bridge = lab.bridge().set("limits", limits).run().await?;
            let tor = lab.ctor("tor".as_ref(), "").await?;
            let attached = attach(lab, &tor, &[&bridge]).await?;
            let url = lab.origins.blocking_tor_exits().url("/");
            for page in futures::future::join_all((0..6).map(|_| tor.way.get(&url))).await {
                page?;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            let page = tor.way.get_as("later", &url).await?;
            ensure!(page.status == 200, "{page:?}");
            ensure!(!attached.stdout().contains("ended"), "{}", attached.stdout());
            Ok(())
        },
    );

    suite.case("what eebt attach changed is undone after kill -9", async |lab| {
        let (bridge, tor) = (lab.bridge().run().await?, lab.ctor("tor".as_ref(), "").await?);
        let operator = lab.operator();
        let origin = lab.origins.blocking_tor_exits();
        let (before, hosts) = (settings(&tor).await?, [origin.addr().ip().to_string()]);
        let mut attached = operator.attach(&tor, &[&bridge.line], &hosts, &[]).await?;
        attached.signal(Signal::SIGKILL);
        attached.exit_code(Duration::from_secs(5)).await?;
        // Nothing hangs and nothing leaks: tor knows where that host leads to.
        let page = tor.way.get(&origin.url("/")).await?;
        ensure!(page.status == 200 && origin.last_peer_ip() == Some(bridge.ip), "{page:?}");
        ensure!(settings(&tor).await? != before);
        // No host is in the record; whom a person visits is nobody's business.
        for entry in std::fs::read_dir(operator.state.join("attach"))?.flatten() {
            if entry.path().is_file() {
                ensure!(!std::fs::read_to_string(entry.path())?.contains(&hosts[0]), "{:?}", entry.path());
            }
        }
        let undone = operator.run(&["attach", "--undo", "--json"]).await?;
        ensure!(undone.trim() == r#"{"undone":1}"#, "{undone}");
        ensure!(settings(&tor).await? == before);

        // A second run does so, too, and goes on from there.
        let mut killed = operator.attach(&tor, &[&bridge.line], &hosts, &[]).await?;
        killed.signal(Signal::SIGKILL);
        killed.exit_code(Duration::from_secs(5)).await?;
        let mut second = operator.attach(&tor, &[&bridge.line], &hosts, &[]).await?;
        let Err(error) = operator.attach(&tor, &[&bridge.line], &hosts, &[]).await else {
            anyhow::bail!("two are attached");
        };
        ensure!(format!("{error:#}").contains("another `eebt attach`"), "{error:#}");
        second.signal(Signal::SIGTERM);
        ensure!(second.exit_code(Duration::from_secs(20)).await? == Some(0), "{}", second.stderr());
        ensure!(settings(&tor).await? == before);
        Ok(())
    });

    suite.case("eebt attach sets again what a tor forgets when it reads its torrc", async |lab| {
        let (bridge, tor) = (lab.bridge().run().await?, lab.ctor("tor".as_ref(), "").await?);
        let attached = attach(lab, &tor, &[&bridge]).await?;
        tor.process.signal(Signal::SIGHUP);
        said(&attached, r#"{"set_again":true}"#).await?;
        let origin = lab.origins.blocking_tor_exits();
        let page = tor.way.get(&origin.url("/")).await?;
        ensure!(page.status == 200 && origin.last_peer_ip() == Some(bridge.ip), "{page:?}");

        // Also where there is no exit bridge that serves: its hosts go nowhere.
        drop(bridge);
        said(&attached, r#""serves":false"#).await?;
        let before = attached.stdout();
        tor.process.signal(Signal::SIGHUP);
        said(&attached, &format!("{before}{{\"set_again\":true}}")).await?;
        origin.clear_hits();
        let page = tor.way.curl_as("later", &origin.url("/"), &["--max-time", "8"]).await?;
        ensure!(page.status == 0 && origin.hits().is_empty(), "{page:?}");
        Ok(())
    });

    suite.case("another exit bridge takes over the hosts of one that died", async |lab| {
        let tor = lab.ctor("tor".as_ref(), "").await?;
        let origin = lab.origins.blocking_tor_exits();
        let (one, other) = (lab.bridge().run().await?, lab.bridge().run().await?);
        let attached = attach(lab, &tor, &[&one, &other]).await?;
        ensure!(tor.way.get(&origin.url("/")).await?.status == 200);
        let (dies, lives) = if origin.last_peer_ip() == Some(one.ip) { (one, other) } else { (other, one) };
        drop(dies);
        said(&attached, r#""serves":false"#).await?;
        let page = tor.way.get_as("later", &origin.url("/")).await?;
        ensure!(page.status == 200 && origin.last_peer_ip() == Some(lives.ip), "{page:?}");
        drop(lives);
        // None is left, and no Tor exit gets it.
        let seen = origin.last_peer_ip();
        let page = tor.way.curl(&origin.url("/"), &["--max-time", "8"]).await?;
        ensure!(page.status == 0 && origin.last_peer_ip() == seen, "{page:?}");
        Ok(())
    });

    suite.case_if(
        patched_tor().is_some(),
        "C tor with the patches sends its targets to an exit bridge, and nothing else",
        only_targets,
    );

    suite.case(
        "eebt attach takes a server descriptor from a file, and none that is another's",
        async |lab| {
            // By a password, too, and at a tor that works with whole descriptors already.
            let hashed =
                Command::new("tor").args(["--quiet", "--hash-password", "a \"word\""]).output().await?;
            let hashed = String::from_utf8(hashed.stdout)?;
            let torrc = format!("UseMicrodescriptors 0\nHashedControlPassword {}\n", hashed.trim());
            let tor = lab.ctor("tor".as_ref(), &torrc).await?;
            let (bridge, stranger) = (lab.bridge().run().await?, lab.bridge().run().await?);
            let origin = lab.origins.blocking_tor_exits();
            let dir = lab.folder("descriptor");
            let (file, password) = (dir.join("descriptor"), dir.join("password"));
            std::fs::write(&password, "a \"word\"\n")?;
            let described = Command::new(binary("eebt-bridge"))
                .args(["descriptor", "--config"])
                .arg(&bridge.config)
                .output()
                .await?;
            ensure!(described.status.success(), "{described:?}");
            std::fs::write(&file, described.stdout)?;
            // Nobody to ask: not a program that could, so the file must do.
            let (file, password) = (file.to_str().context("path")?, password.to_str().context("path")?);
            let more = ["--descriptor", file, "--client-binary", "/bin/false", "--password-file", password];
            let hosts = [origin.addr().ip().to_string()];
            let attached = lab.operator().attach(&tor, &[&bridge.line], &hosts, &more).await?;
            ensure!(attached.stdout().contains(r#""whole_descriptors":false"#), "{}", attached.stdout());
            ensure!(tor.way.get(&origin.url("/")).await?.status == 200);
            let wrong = lab.operator().attach(&tor, &[&stranger.line], &hosts, &more).await;
            ensure!(wrong.is_err(), "a descriptor that is another's was taken");
            Ok(())
        },
    );
}

/// Who resolves which name, and where the page comes from.
async fn names(lab: &Lab) -> anyhow::Result<()> {
    let origin = lab.origins.open();
    let (of_exits, of_bridge) =
        (Dns::start(lab.net.spare_ip()).await?, Dns::start(lab.net.spare_ip()).await?);
    let _asks = lab.exits_ask(&of_exits).await?;
    let chosen = ["site.example.net", "example.org", "www.example.org", "a.b.example.org"];
    let others = ["example.net", "www.site.example.net", "notexample.org"];
    for name in chosen.into_iter().chain(others) {
        for dns in [&of_exits, &of_bridge] {
            dns.set(name, &[&origin.addr().ip().to_string()]);
        }
    }
    let bridge = lab.bridge().set("resolver", vec![of_bridge.addr().to_string()]).run().await?;
    // Else tor likes its linked circuits more than any that are ready.
    let tor = lab.ctor("tor".as_ref(), "ConfluxEnabled 0\n").await?;
    let file = lab.folder("hosts").join("hosts");
    std::fs::write(&file, "# mine\nsite.example.net\n\n*.example.org\n")?;
    let more = ["--for-file", file.to_str().context("path")?];
    let mut attached = lab.operator().attach(&tor, &[&bridge.line], &[], &more).await?;

    // Nobody's isolation keeps these from the circuits that are ready.
    for name in others {
        let start = Instant::now();
        while tor.circuits_to(&bridge.line).await? < 2 {
            ensure!(start.elapsed() < Duration::from_secs(60), "no circuits are ready");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seen = visit(&tor, name, name, origin).await?;
        ensure!(seen == Some(lab.net.exit_egress_ip()) && of_bridge.asked(name) == 0, "{name}: {seen:?}");
    }
    for name in chosen {
        for name in [name.to_owned(), format!("{name}."), name.to_uppercase()] {
            let seen = visit(&tor, &name, &name, origin).await?;
            ensure!(seen == Some(bridge.ip), "{name}: {seen:?}");
        }
        ensure!(of_exits.asked(name) == 0 && of_bridge.asked(name) > 0, "{name}");
    }
    stopped(&mut attached).await?;
    for name in chosen {
        let seen = visit(&tor, "after", name, origin).await?;
        ensure!(seen == Some(lab.net.exit_egress_ip()), "{name}: {seen:?}");
    }
    Ok(())
}

/// Fetches a page as somebody, by the very name: who the origin saw, if it answered.
async fn visit(tor: &CTor, who: &str, name: &str, origin: &Origin) -> anyhow::Result<Option<IpAddr>> {
    origin.clear_hits();
    let target = (name, origin.addr().port());
    let mut stream = Socks5Stream::connect_with_password(tor.way.proxy, target, who, "x").await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await?;
    ensure!(page.starts_with(b"HTTP/1.1 200"), "{name}: {:?}", String::from_utf8_lossy(&page));
    Ok(origin.last_peer_ip())
}

/// Ends it as Ctrl-C does.
async fn stopped(attached: &mut Running) -> anyhow::Result<()> {
    attached.signal(Signal::SIGINT);
    ensure!(attached.exit_code(Duration::from_secs(20)).await? == Some(0), "{}", attached.stderr());
    Ok(())
}

/// C tor with tor-patches/c-tor: what of a person's streams goes to an exit bridge, and who can see that.
async fn only_targets(lab: &Lab) -> anyhow::Result<()> {
    let bridge = lab.bridge().run().await?;
    let (blocking, open) = (lab.origins.blocking_tor_exits(), lab.origins.open());
    let torrc = format!("ExitBridge targets={} {}\n", blocking.addr().ip(), bridge.line);
    let tor = lab.ctor(&patched_tor().context("no patched tor")?, &torrc).await?;
    let mut control = tor.control().await?;
    ensure!(tor.way.get(&blocking.url("/")).await?.status == 200);
    ensure!(blocking.last_peer_ip() == Some(bridge.ip), "{:?}", blocking.last_peer_ip());
    ensure!(tor.way.get(&open.url("/")).await?.status == 200);
    ensure!(open.last_peer_ip() == Some(lab.net.exit_egress_ip()), "{:?}", open.last_peer_ip());

    let fingerprint = data_encoding::HEXUPPER.encode(&tests::circuit_reach(&bridge.line)?.rsa);
    let status = control.ask("GETINFO exit-bridge-status").await?;
    ensure!(status.contains(&fingerprint), "{status}");
    let circuits = control.ask("GETINFO circuit-status").await?;
    let ours = |line: &&str| line.contains("EXIT_BRIDGE") && line.contains(&fingerprint);
    ensure!(circuits.lines().any(|line| ours(&line)), "{circuits}");

    // A torrc without the line, and what was only for the exit bridge goes as everything does.
    let path = tor.way.dir.join("torrc");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, text.replace(&torrc, ""))?;
    control.ask("SIGNAL RELOAD").await?;
    ensure!(tor.way.get_as("later", &blocking.url("/")).await?.status == 403);
    Ok(())
}

async fn attach(lab: &Lab, tor: &CTor, bridges: &[&Bridge]) -> anyhow::Result<Running> {
    let lines: Vec<_> = bridges.iter().map(|bridge| &bridge.line).collect();
    let hosts = [lab.origins.blocking_tor_exits().addr().ip().to_string()];
    lab.operator().attach(tor, &lines, &hosts, &[]).await
}

/// All that a tor is set to.
async fn settings(tor: &CTor) -> anyhow::Result<String> {
    tor.control().await?.ask("GETINFO config-text").await
}

/// Waits until it says so.
async fn said(attached: &Running, what: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while !attached.stdout().contains(what) {
        ensure!(start.elapsed() < Duration::from_secs(60), "it did not say {what}: {}", attached.stdout());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
