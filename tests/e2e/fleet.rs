//! `eebt` with real exit bridges on this machine.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("eebt up, ls, down: exit bridges that serve, and nothing left behind", async |lab| {
        let operator = lab.operator();
        let lines = operator.lines("3", "1h").await?;
        ensure!(lines.len() == 3, "{} lines", lines.len());

        let client = lines.iter().fold(lab.client(), |c, line| c.via_line(line)).run().await?;
        ensure!(client.get(&lab.origins.blocking_tor_exits().url("/")).await?.status == 200);

        let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
        ensure!(ls["instances"].as_array().context("instances")?.len() == 3, "{ls}");
        operator.run(&["down", "--all"]).await?;
        let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
        ensure!(ls["instances"].as_array().context("instances")?.is_empty(), "{ls}");
        ensure!(client.get(&lab.origins.blocking_tor_exits().url("/")).await?.status == 0);
        Ok(())
    });

    suite.case("eebt killed at any moment: the next run shows the truth", async |lab| {
        let operator = lab.operator();
        for delay in [50, 150, 300, 500, 800, 1200] {
            let mut up = operator
                .up("2", "1h")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()?;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            up.kill().await?;
        }
        operator.run(&["ls"]).await?;
        operator.run(&["down", "--all", "--now"]).await?;
        let mine = operator.state.display().to_string();
        let left: Vec<String> = std::fs::read_dir("/proc")?
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains("eebt-bridge") && line.contains(&mine))
            .collect();
        ensure!(left.is_empty(), "still running: {left:?}");
        Ok(())
    });

    suite.case("an instance ends at its expiry though eebt is gone", async |lab| {
        let operator = lab.operator();
        operator.lines("1", "1m").await?;
        let mut left = 1;
        for _ in 0..80 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
            left = ls["instances"].as_array().context("instances")?.len();
            if left == 0 {
                break;
            }
        }
        ensure!(left == 0, "it outlived its minute");
        let all = operator.run(&["ls", "--all", "--json"]).await?;
        ensure!(all.contains("expired"), "{all}");
        Ok(())
    });
}
