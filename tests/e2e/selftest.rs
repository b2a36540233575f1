//! What `eebt-client selftest` tells a person. Where all is well, and whether that is true, is seen in the leak test.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::binary;
use tokio::process::Command;

use crate::Suite;

/// Runs the self test: exit code and report.
pub async fn run(mut client: Command, args: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let out = client.args(["selftest", "--json"]).args(args).env_remove("RUST_LOG").output().await?;
    let report = serde_json::from_slice(&out.stdout);
    Ok((out.status.code(), report.with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?))
}

/// How one check went.
pub fn outcome<'a>(report: &'a Value, check: &str) -> &'a str {
    let mut checks = report["checks"].as_array().into_iter().flatten();
    checks.find(|c| c["check"] == check).and_then(|c| c["outcome"].as_str()).unwrap_or("missing")
}

pub fn cases(suite: &mut Suite) {
    suite.case("selftest: a port that others reach, and no client at all, are failures", async |lab| {
        let bridge = lab.bridge().run().await?;
        let client = lab.client().via(&bridge).run().await?;
        let config = std::fs::read_to_string(client.dir.join("client.toml"))?;
        let mut config: toml::Table = config.parse()?;
        config.insert("listen".into(), vec!["0.0.0.0:9150"].into());
        config.insert("allow_remote".into(), true.into());
        let file = client.dir.join("open.toml");
        std::fs::write(&file, toml::to_string(&config)?)?;
        let site = lab.origins.open().addr().to_string();
        let args = ["--config", &file.display().to_string(), "--site", &site];
        let (code, report) = run(Command::new(binary("eebt-client")), &args).await?;
        ensure!(code == Some(1) && outcome(&report, "loopback") == "failed", "{report}");
        for check in ["start", "page", "unknown-name", "fails-closed"] {
            ensure!(outcome(&report, check) == "ok", "{check}: {report}");
        }
        let nobody = format!("{}:9150", lab.net.spare_ip());
        let (code, report) = run(Command::new(binary("eebt-client")), &["--proxy", &nobody]).await?;
        ensure!(code == Some(1) && outcome(&report, "start") == "failed", "{report}");
        Ok(())
    });
}
