//! An exit bridge's life: it dies, drains, expires; its clients go on.

use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("an exit bridge that is killed in mid-download is replaced within 5 seconds", async |lab| {
        let bridges = [lab.bridge().run().await?, lab.bridge().run().await?, lab.bridge().run().await?];
        let client = bridges.iter().fold(lab.client(), |c, b| c.via(b)).run().await?;
        let peer = lab.origins.open().url("/peer");
        let serving = client.get(&peer).await?.text.trim().to_owned();
        let killed = bridges.iter().find(|b| b.ip.to_string() == serving).expect("one of ours");

        let url = lab.origins.open().url("/bulk/200000000");
        let (download, ()) = tokio::join!(client.get(&url), async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            killed.process.signal(Signal::SIGKILL);
        });
        let download = download?;
        ensure!(
            download.exit_code != 0 && download.size > 0,
            "half a download must not look whole: {download:?}"
        );
        ensure!(download.took < Duration::from_secs(15), "it hung: {download:?}");

        let start = Instant::now();
        let next = client.get(&peer).await?;
        ensure!(next.status == 200 && start.elapsed() < Duration::from_secs(5), "{next:?}");
        let other = next.text.trim().to_owned();
        ensure!(other != serving && bridges.iter().any(|b| b.ip.to_string() == other), "{other}");
        // And it stays with the new one.
        for _ in 0..5 {
            ensure!(client.get(&peer).await?.text.trim() == other);
        }
        Ok(())
    });

    suite.case("an exit bridge that stops answering is replaced too", async |lab| {
        let bridges = [lab.bridge().run().await?, lab.bridge().run().await?];
        let client = bridges.iter().fold(lab.client(), |c, b| c.via(b)).run().await?;
        // Frozen before anybody has a circuit to it: its kernel accepts, and nothing comes.
        bridges[0].process.signal(Signal::SIGSTOP);
        let peer = lab.origins.open().url("/peer");
        for user in ["a", "b", "c", "d"] {
            let page = client.get_as(user, &peer).await?;
            ensure!(page.text.trim() == bridges[1].ip.to_string(), "{page:?}");
            ensure!(page.took < Duration::from_secs(5), "{:?}", page.took);
        }
        bridges[0].process.signal(Signal::SIGCONT);
        Ok(())
    });

    suite.case("without an exit bridge that lives there is an error, and never plain Tor", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).set("connect_timeout", "20s").run().await?;
        let origin = lab.origins.blocking_tor_exits();
        ensure!(client.get(&origin.url("/")).await?.status == 200);
        bridge.process.signal(Signal::SIGKILL);
        origin.clear_hits();
        for _ in 0..3 {
            let page = client.get(&origin.url("/")).await?;
            ensure!(page.status == 0 && page.exit_code != 0, "{page:?}");
        }
        ensure!(origin.hits().is_empty(), "somebody else asked: {:?}", origin.hits());
        Ok(())
    });

    suite.case("a stream that its program has closed is over at the exit bridge, too", async |lab| {
        for bridge in [lab.bridge(), lab.bridge().onion()] {
            let mut bridge = bridge.set("drain", "60s").run().await?;
            let client = lab.client().via(&bridge).run().await?;
            // The origin would keep the connection open for another request.
            ensure!(client.get(&lab.origins.open().url("/")).await?.status == 200);
            bridge.process.signal(Signal::SIGTERM);
            bridge.process.exit_code(Duration::from_secs(5)).await?;
        }
        Ok(())
    });

    suite.case("SIGTERM lets streams finish and takes no new ones", async |lab| {
        let mut bridge = lab.bridge().set("drain", "60s").run().await?;
        let client = lab.client().via(&bridge).set("optimistic", false).run().await?;
        let status = async |path: &str| -> anyhow::Result<u16> {
            let url = format!("http://{}{path}", bridge.status);
            let args = ["-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
            let out = tokio::process::Command::new("curl").args(args).output().await?;
            Ok(String::from_utf8_lossy(&out.stdout).parse()?)
        };
        ensure!(status("/ready").await? == 200 && status("/live").await? == 200);
        // Slow enough, and much enough, that no buffer on the way holds the rest.
        let slowly = crate::bulk::slow_reader(&client, lab.origins.open(), 16_000_000, 2_000_000);
        let (download, during) = tokio::join!(slowly, async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            bridge.process.signal(Signal::SIGTERM);
            tokio::time::sleep(Duration::from_millis(300)).await;
            (status("/ready").await, client.get(&lab.origins.open().url("/")).await)
        });
        download?;
        ensure!(during.0? == 503);
        ensure!(during.1?.status == 0, "a new stream was taken");
        ensure!(bridge.process.exit_code(Duration::from_secs(10)).await? == Some(0));
        Ok(())
    });

    suite.case("an exit bridge ends by itself when its life is over", async |lab| {
        let mut bridge = lab.bridge().set("lifetime", "5s").set("drain", "1s").run().await?;
        ensure!(bridge.line.expires.is_some());
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(bridge.process.is_alive());
        ensure!(bridge.process.exit_code(Duration::from_secs(10)).await? == Some(0));
        let client = lab.client().via(&bridge).set("connect_timeout", "5s").run().await?;
        ensure!(client.get(&lab.origins.open().url("/")).await?.status == 0);
        Ok(())
    });
}
