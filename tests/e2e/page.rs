//! The main job: a page that refuses Tor opens, and its origin sees the exit bridge.

use anyhow::ensure;
use tests::{Bridge, Dns, Fetched, Lab};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("a page that refuses Tor opens through an exit bridge", async |lab| {
        let origin = lab.origins.blocking_tor_exits();
        let plain = lab.get_plain(&origin.url("/")).await?;
        ensure!(plain.status == 403, "plain Tor: {plain:?}");
        ensure!(origin.last_peer_ip() == Some(lab.net.exit_egress_ip()));

        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).run().await?;
        let page = client.get(&origin.url("/")).await?;
        ensure!(page.status == 200, "exit bridge: {page:?}");
        ensure!(origin.last_peer_ip() == Some(bridge.ip), "the origin saw {:?}", origin.last_peer_ip());
        ensure!(client.get(&origin.url("/peer")).await?.text.trim() == bridge.ip.to_string());
        Ok(())
    });

    suite.case("HTTPS, HTTP CONNECT and SOCKS4a work too", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).run().await?;
        let (http, https) = (lab.origins.blocking_tor_exits(), lab.origins.blocking_tor_exits_tls());
        let ca = lab.origins.ca_file().display().to_string();
        ensure!(client.curl(&https.url("/"), &["--cacert", &ca]).await?.status == 200);
        let proxy = client.proxy.to_string();
        for way in [format!("http://{proxy}"), format!("socks4a://{proxy}")] {
            let args = ["--proxytunnel", "--proxy", &way];
            let page = client.curl(&http.url("/"), &args).await?;
            ensure!(page.status == 200, "{way}: {page:?}");
        }
        Ok(())
    });

    suite.case("names are resolved at the exit bridge", async |lab| {
        let dns = Dns::start(lab.net.spare_ip()).await?;
        let origin = lab.origins.blocking_tor_exits();
        dns.set("site.example.net", &[&origin.addr().ip().to_string()]);
        let bridge = lab.bridge().set("resolver", vec![dns.addr().to_string()]).run().await?;
        let client = lab.client().via(&bridge).run().await?;
        let url = format!("http://site.example.net:{}/", origin.addr().port());
        ensure!(client.get(&url).await?.status == 200);
        ensure!(dns.asked("site.example.net") == 1);

        let ask = async |name: &str| -> anyhow::Result<String> {
            let out =
                tokio::process::Command::new("tor-resolve").args([name, &client.proxy.to_string()]).output();
            Ok(String::from_utf8_lossy(&out.await?.stdout).trim().to_owned())
        };
        ensure!(ask("site.example.net").await? == origin.addr().ip().to_string());
        ensure!(ask("nowhere.example.net").await?.is_empty());
        Ok(())
    });

    suite.case("a body that ends with its connection arrives whole, and half of one does not", async |lab| {
        for bridge in [lab.bridge(), lab.bridge().onion()] {
            bodies_end_as_they_should(lab, &bridge.run().await?).await?;
        }
        Ok(())
    });

    suite.case("one relay more with vanguards", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).set("path", "vanguards").run().await?;
        let page = client.get(&lab.origins.blocking_tor_exits().url("/")).await?;
        ensure!(page.status == 200, "{page:?}");
        Ok(())
    });

    suite.case("mode never and rules take plain Tor where they say so", async |lab| {
        let bridge = lab.bridge().run().await?;
        let url = lab.origins.blocking_tor_exits().url("/");
        let open = lab.origins.open().url("/peer");
        let never = lab.client().via(&bridge).set("mode", "never").run().await?;
        ensure!(never.get(&url).await?.status == 403);

        let blocking = lab.origins.blocking_tor_exits().addr().ip();
        let rules = lab.client().via(&bridge).set("mode", "rules");
        let rules = rules.set("rules", vec![format!("{blocking}=exit-bridge")]).run().await?;
        ensure!(rules.get(&url).await?.status == 200);
        let seen = |page: &Fetched| page.text.trim().to_owned();
        ensure!(seen(&rules.get(&open).await?) == lab.net.exit_egress_ip().to_string());
        Ok(())
    });

    suite.case("the bridge file is read again when it changes", async |lab| {
        let (one, two) = (lab.bridge().run().await?, lab.bridge().run().await?);
        let file = lab.folder("lines").join("bridges.txt");
        std::fs::write(&file, format!("# first\n{}\n", one.line))?;
        let client = lab.client().set("bridge_file", file.display().to_string()).run().await?;
        let url = lab.origins.open().url("/peer");
        ensure!(client.get(&url).await?.text.trim() == one.ip.to_string());
        std::fs::write(&file, format!("{}\neebt1 circuit nonsense\n", two.line))?;
        for _ in 0..50 {
            if client.process.stderr().contains("bridge_file read again") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        ensure!(client.get(&url).await?.text.trim() == two.ip.to_string());
        ensure!(client.process.stderr().contains("line 2"), "the bad line is named");
        Ok(())
    });
}

async fn bodies_end_as_they_should(lab: &Lab, bridge: &Bridge) -> anyhow::Result<()> {
    let client = lab.client().via(bridge).run().await?;
    let through =
        async |origin: &testnet::Origin, request: &[u8]| -> anyhow::Result<std::io::Result<usize>> {
            let mut stream = Socks5Stream::connect(client.proxy, origin.addr()).await?;
            stream.write_all(request).await?;
            let mut got = Vec::new();
            Ok(stream.read_to_end(&mut got).await)
        };
    let request = b"GET /bulk/2000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let whole = through(lab.origins.open(), request).await?;
    ensure!(whole.as_ref().is_ok_and(|n| *n > 2_000_000), "{whole:?}");
    // Nothing is sent: an origin that closes with unread bytes resets.
    let closed = through(lab.origins.close(), b"").await?;
    ensure!(closed.is_ok(), "{closed:?}");
    let reset = through(lab.origins.reset(), b"hello").await?;
    ensure!(reset.is_err(), "a reset must not look like an end");
    Ok(())
}
