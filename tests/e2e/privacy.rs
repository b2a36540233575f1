//! Who may know what: isolation, and what is in no log.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::ensure;
use eebt_proto::Reach;
use tests::{BridgeBuilder, Dns, Lab};

use crate::Suite;

/// Names of the circuits that streams were opened on, from a client's log.
pub fn circuits(log: &str) -> BTreeSet<String> {
    log.lines()
        .filter(|l| l.contains("stream opened"))
        .filter_map(|l| l.split("circuit=\"").nth(1)?.split('"').next().map(String::from))
        .collect()
}

/// A text as `Debug` shows its bytes.
fn as_bytes(text: &str) -> String {
    text.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(", ")
}

pub fn cases(suite: &mut Suite) {
    suite.case("different SOCKS credentials share no circuit", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).run().await?;
        let url = lab.origins.open().url("/");
        for _ in 0..3 {
            ensure!(client.get_as("alice", &url).await?.status == 200);
        }
        let alice = circuits(&client.process.stderr());
        ensure!(alice.len() == 1, "alice's streams share a circuit: {alice:?}");
        ensure!(client.get_as("bob", &url).await?.status == 200);
        ensure!(client.get(&url).await?.status == 200);
        let all = circuits(&client.process.stderr());
        ensure!(all.len() == 3, "alice, bob and nobody have one each: {all:?}");
        // The same name over another protocol is somebody else.
        let http = format!("http://alice:x@{}", client.proxy);
        ensure!(client.curl(&url, &["--proxytunnel", "--proxy", &http]).await?.status == 200);
        ensure!(circuits(&client.process.stderr()).len() == 4);
        Ok(())
    });

    suite.case("no target, client address or payload is in any log at any level", async |lab| {
        logs_hold_nothing(lab, lab.bridge()).await
    });

    suite.case("nor is it with an onion exit bridge, and neither is its address", async |lab| {
        logs_hold_nothing(lab, lab.bridge().onion()).await
    });
}

async fn logs_hold_nothing(lab: &Lab, bridge: BridgeBuilder<'_>) -> anyhow::Result<()> {
    let dns = Dns::start(lab.net.spare_ip()).await?;
    let origin = lab.origins.open();
    dns.set("planted-name.example.net", &[&origin.addr().ip().to_string()]);
    let bridge = bridge.set("resolver", vec![dns.addr().to_string()]).log("trace").run().await?;
    let client = lab.client().via(&bridge).log("trace").run().await?;
    let port = origin.addr().port();
    let url = format!("http://planted-name.example.net:{port}/planted-path?x=planted-payload");
    let sent = ["-H", "X-Planted: planted-header", "-d", "planted-body"];
    ensure!(client.curl(&url, &sent).await?.status == 200);
    // What fails is logged more eagerly than what works.
    client.get("http://planted-gone.example.net/").await?;
    client.get(&format!("http://planted-name.example.net:{}/", 81)).await?;
    client.get("http://planted-onion7f3aplantedonion7f3aplantedonion7f3aplantedonion7f3.onion/").await?;
    let origin_ip = origin.addr().ip().to_string();
    client.get(&format!("http://{origin_ip}:{port}/")).await?;
    let program: SocketAddr = {
        let stream = tokio::net::TcpStream::connect(client.proxy).await?;
        stream.local_addr()?
    };
    let never = lab.client().set("mode", "never").log("trace").run().await?;
    never.get(&format!("http://{origin_ip}:{port}/planted-path")).await?;
    never.get("http://planted-gone.example.net/").await?;

    for (who, log) in [
        ("eebt-bridge", bridge.process.stderr()),
        ("eebt-client", client.process.stderr()),
        ("eebt-client, mode never", never.process.stderr()),
    ] {
        ensure!(log.contains("TRACE"), "{who} does not trace");
        let (program, decimal) = (format!("127.0.0.1:{}", program.port()), as_bytes("planted"));
        let hex = data_encoding::HEXLOWER.encode(b"planted");
        let mut never_said = vec!["planted", &decimal, &hex, &origin_ip, &program];
        // Whoever knows an onion address can use the exit bridge.
        let onion = match &bridge.line.reach {
            Reach::Onion(reach) => reach.to_string(),
            Reach::Circuit(_) => String::new(),
        };
        never_said.extend(onion.get(..52));
        for planted in never_said {
            let found: Vec<&str> = log.lines().filter(|l| l.contains(planted)).take(3).collect();
            ensure!(found.is_empty(), "{who} logs {planted:?}: {found:#?}");
        }
    }
    Ok(())
}
