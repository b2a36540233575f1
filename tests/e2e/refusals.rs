//! What never leaves an exit bridge, whatever a client asks for.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::ensure;
use eebt_proto::BridgeLine;
use tests::{Client, Dns, Lab};
use tokio_socks::Error as Socks;
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

/// How asking for a stream ended.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Connected,
    Forbidden,
    Refused,
    Unreachable,
    Other(String),
}

async fn ask(client: &Client, host: &str, port: u16) -> Answer {
    let asked = match host.parse::<IpAddr>() {
        Ok(ip) => Socks5Stream::connect(client.proxy, SocketAddr::new(ip, port)).await,
        Err(_) => Socks5Stream::connect(client.proxy, (host, port)).await,
    };
    match asked {
        Ok(_) => Answer::Connected,
        Err(Socks::ConnectionNotAllowedByRuleset) => Answer::Forbidden,
        Err(Socks::ConnectionRefused) => Answer::Refused,
        Err(Socks::HostUnreachable) => Answer::Unreachable,
        Err(other) => Answer::Other(other.to_string()),
    }
}

/// A client that hears every answer, and asks for every port: it trusts no line to say what is open.
async fn bold_client(lab: &Lab, line: &BridgeLine) -> anyhow::Result<Client> {
    let line = BridgeLine { ports: "1-65535".parse()?, ..line.clone() };
    lab.client().via_line(&line).set("optimistic", false).run().await
}

pub fn cases(suite: &mut Suite) {
    suite.case("special-use addresses are refused, in every form", async |lab| {
        let closed = toml::Value::Array(Vec::new());
        let bridge = lab.bridge().set("allow_egress", closed).run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        let origin = lab.origins.open().addr();
        let own = bridge.ip.to_string();
        let origin_ip = origin.ip().to_string();
        for target in [
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "168.63.129.16",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            &own,
            &origin_ip,
        ] {
            let answer = ask(&client, target, 80).await;
            ensure!(answer == Answer::Forbidden, "{target}: {answer:?}");
        }
        Ok(())
    });

    suite.case(
        "the exit bridge's machine and Tor relays are refused though their range is open",
        async |lab| {
            let relay = lab.net.relays()[0].or_addr();
            let bridge = lab
                .bridge()
                .set("allow_egress", vec!["127.0.0.0/8".to_owned()])
                .set("policy", format!("80,443,{}", relay.port()))
                .run()
                .await?;
            let client = bold_client(lab, &bridge.line).await?;
            for (ip, port) in [(bridge.ip, 80), ("127.0.0.1".parse()?, 80), (relay.ip(), relay.port())] {
                let answer = ask(&client, &ip.to_string(), port).await;
                ensure!(answer == Answer::Forbidden, "{ip}:{port}: {answer:?}");
            }
            let open = lab.origins.open().addr();
            ensure!(
                ask(&client, &open.ip().to_string(), open.port()).await == Answer::Connected
                    || open.port() != 80
            );
            Ok(())
        },
    );

    suite.case("ports outside the policy are refused", async |lab| {
        let bridge = lab.bridge().set("policy", "web").run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        let ip = lab.origins.open().addr().ip().to_string();
        for port in [
            1, 21, 22, 23, 25, 53, 79, 81, 110, 139, 442, 444, 445, 465, 587, 1080, 3389, 6667, 8080, 8443,
            9050, 65535,
        ] {
            let answer = ask(&client, &ip, port).await;
            ensure!(answer == Answer::Forbidden, "port {port}: {answer:?}");
        }
        // A client that goes by the bridge line does not even ask.
        let polite = lab.client().via(&bridge).set("optimistic", false).run().await?;
        ensure!(matches!(ask(&polite, &ip, 22).await, Answer::Other(_)));
        Ok(())
    });

    suite.case("a name that resolves to a closed address is refused", async |lab| {
        let dns = Dns::start(lab.net.spare_ip()).await?;
        let bridge = lab.bridge().set("resolver", vec![dns.addr().to_string()]).run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        for (name, ip) in [
            ("a.example.net", "192.168.0.1"),
            ("b.example.net", "169.254.169.254"),
            ("c.example.net", "127.0.0.1"),
            ("d.example.net", "::1"),
            ("e.example.net", "::ffff:10.0.0.1"),
            ("f.example.net", "fd00:ec2::254"),
        ] {
            dns.set(name, &[ip]);
            let answer = ask(&client, name, 80).await;
            ensure!(answer == Answer::Forbidden, "{name} = {ip}: {answer:?}");
        }
        ensure!(ask(&client, "nowhere.example.net", 80).await == Answer::Unreachable);
        for name in
            ["localhost", "router", "printer.local", "metadata.google.internal", "127.1", "0x7f.0.0.1"]
        {
            let answer = ask(&client, name, 80).await;
            ensure!(answer == Answer::Forbidden, "{name}: {answer:?}");
        }
        Ok(())
    });

    suite.case("a name that changes its address between two look-ups gains nothing", async |lab| {
        let dns = Dns::start(lab.net.spare_ip()).await?;
        let bridge = lab.bridge().set("resolver", vec![dns.addr().to_string()]).run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        let origin = lab.origins.open();
        let good = origin.addr().ip().to_string();
        dns.set_changing("rebind.example.net", &[&[&good], &["127.0.0.1"]]);
        let first = ask(&client, "rebind.example.net", origin.addr().port()).await;
        ensure!(first == Answer::Connected, "{first:?}");
        ensure!(dns.asked("rebind.example.net") == 1, "one stream, one look-up");
        ensure!(ask(&client, "rebind.example.net", origin.addr().port()).await == Answer::Forbidden);
        // Of a mixed answer only the open address is used.
        dns.set("mixed.example.net", &["127.0.0.1", &good, "192.168.0.1"]);
        ensure!(ask(&client, "mixed.example.net", origin.addr().port()).await == Answer::Connected);
        Ok(())
    });

    suite.case("an origin's own refusal is told as such", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        let ip = lab.origins.open().addr().ip().to_string();
        // Nobody listens there: the policy has the port, the origins have not.
        let free = (443..).find(|p| !lab.origins.all().iter().any(|o| o.addr().port() == *p));
        ensure!(free.is_some());
        let closed = lab.origins.echo().addr().ip().to_string();
        ensure!(ask(&client, &closed, 443).await == Answer::Refused);
        let _ = ip;
        Ok(())
    });

    suite.case("too many new streams on one circuit are refused, and it recovers", async |lab| {
        let mut limits = toml::Table::new();
        let mut rate = toml::Table::new();
        rate.insert("per_second".into(), 5.0.into());
        rate.insert("burst".into(), 10.0.into());
        limits.insert("new_streams".into(), rate.into());
        let bridge = lab.bridge().set("limits", limits).run().await?;
        let client = bold_client(lab, &bridge.line).await?;
        let origin = lab.origins.open().addr();
        let ip = origin.ip().to_string();
        let mut refused = 0;
        for _ in 0..40 {
            refused += u32::from(ask(&client, &ip, origin.port()).await != Answer::Connected);
        }
        ensure!(refused >= 10, "only {refused} of 40 were refused");
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(ask(&client, &ip, origin.port()).await == Answer::Connected);
        Ok(())
    });
}
