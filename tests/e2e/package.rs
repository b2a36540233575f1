//! The client's Debian package, and the unit in it.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, ensure};
use sha2::Digest as _;
use tests::{Lab, Running, binary, walk};
use tokio::process::Command;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    unit_cases(suite);
    app_case(suite);
    image_case(suite);
    suite.case("the Debian package is the same each time, and its unit runs the client", async |lab| {
        let (one, two) = (package(lab, "eebt-client").await?, package(lab, "eebt-client").await?);
        let sum = |path: &Path| std::fs::read(path).map(sha2::Sha256::digest);
        ensure!(sum(&one)? == sum(&two)?, "another package each time");

        let root = lab.folder("root");
        done(Command::new("dpkg-deb").arg("-x").arg(&one).arg(&root)).await?;
        let program = root.join("usr/bin/eebt-client");
        let said = done(Command::new(&program).arg("--version")).await?;
        ensure!(String::from_utf8_lossy(&said.stdout).starts_with("eebt-client "), "{said:?}");

        let unit = root.join("usr/lib/systemd/user/eebt-client.service");
        let unit =
            std::fs::read_to_string(&unit)?.replace("/usr/bin/eebt-client", &program.display().to_string());
        let dir = lab.folder("unit");
        let path = dir.join("eebt-client.service");
        std::fs::write(&path, &unit)?;
        let verify = done(
            Command::new("systemd-analyze")
                .args(["--user", "verify"])
                .arg(&path)
                .env("XDG_RUNTIME_DIR", &dir),
        )
        .await?;
        let complaints = String::from_utf8_lossy(&verify.stderr);
        ensure!(!complaints.contains("eebt-client.service:"), "{complaints}");

        // What the unit starts, with the configuration where it says.
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("ExecStart")?;
        let config = dir.join("eebt-client/config.toml");
        std::fs::create_dir_all(config.parent().context("a folder")?)?;
        let bridge = lab.bridge().run().await?;
        let text = format!(
            "network = {:?}\nlisten = [\"127.0.0.1:0\"]\nbridges = [{:?}]\nstate_dir = {:?}\n",
            lab.net.network_file().display().to_string(),
            bridge.line.to_string(),
            dir.join("state").display().to_string(),
        );
        std::fs::write(&config, text)?;
        let start = start.replace("%E", &dir.display().to_string());
        let mut words = start.split_whitespace();
        let mut command = Command::new(words.next().context("a program")?);
        command.args(words);
        let mut client = Running::start(command, &dir)?;
        client.wait_for("ready line", |_, err| err.contains("ready: ").then_some(())).await
    });
}

/// The volunteer's app, as a package manager takes it apart.
fn app_case(suite: &mut Suite) {
    suite.case("the Debian package of the volunteer's app has all that a desktop looks for", async |lab| {
        let (made, root) = (package(lab, "hebtor-volunteer").await?, lab.folder("root"));
        done(Command::new("dpkg-deb").arg("-x").arg(&made).arg(&root)).await?;
        let entry = std::fs::read_to_string(root.join("usr/share/applications/hebtor-volunteer.desktop"))?;
        let value = |key: &str| {
            let found = entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.with_context(|| format!("no {key}"))
        };
        let said = done(Command::new(root.join("usr/bin").join(value("Exec")?)).arg("--version")).await?;
        ensure!(String::from_utf8_lossy(&said.stdout).starts_with("hebtor-volunteer "), "{said:?}");
        let icon = format!("usr/share/icons/hicolor/scalable/apps/{}.svg", value("Icon")?);
        ensure!(root.join(icon).exists());
        // Nothing that starts by itself: the one unit waits until somebody enables it.
        ensure!(!root.join("etc").exists());
        let units = walk(&root.join("usr/lib/systemd"));
        ensure!(units == [root.join("usr/lib/systemd/user/hebtor-volunteer.service")], "{units:?}");
        Ok(())
    });
}

/// The same as an AppImage. Its runtime is another project's program: here is one that only looks like it.
fn image_case(suite: &mut Suite) {
    suite.case("an AppImage of the volunteer's app is a runtime and the app behind it", async |lab| {
        let dir = lab.folder("appimage");
        let runtime = dir.join("runtime");
        let mut bytes = std::fs::read("/bin/true")?;
        ensure!(image(&runtime, &dir).await.is_err(), "without a runtime");
        std::fs::write(&runtime, &bytes)?;
        ensure!(image(&runtime, &dir).await.is_err(), "a program that is no runtime");
        bytes[8..11].copy_from_slice(b"AI\x02");
        std::fs::write(&runtime, &bytes)?;
        let made = image(&runtime, &dir.join("one")).await?;
        let again = image(&runtime, &dir.join("two")).await?;
        ensure!(std::fs::read(&made)? == std::fs::read(&again)?, "another one each time");

        // What the runtime would mount.
        let root = dir.join("root");
        let mut take_apart = Command::new("unsquashfs");
        take_apart.args(["-quiet", "-no-progress", "-offset", &bytes.len().to_string(), "-dest"]);
        done(take_apart.arg(&root).arg(&made)).await?;
        let said = done(Command::new(root.join("AppRun")).arg("--version")).await?;
        ensure!(String::from_utf8_lossy(&said.stdout).starts_with("hebtor-volunteer "), "{said:?}");
        for file in ["hebtor-volunteer.desktop", "hebtor-volunteer.svg", ".DirIcon"] {
            ensure!(root.join(file).is_file(), "{file}");
        }
        Ok(())
    });
}

async fn image(runtime: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    let made = done(script("appimage")?.arg(runtime).arg(out)).await?;
    Ok(String::from_utf8_lossy(&made.stdout).trim().into())
}

/// A script of `deploy/` that packs what was built.
fn script(name: &str) -> anyhow::Result<Command> {
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name));
    let programs = binary("eebt-client");
    let target = programs.ancestors().nth(2).context("a target folder")?;
    script.env("CARGO_TARGET_DIR", target).env("SOURCE_DATE_EPOCH", "1700000000");
    Ok(script)
}

/// The units in `deploy/` that start a program of ours are good ones.
fn unit_cases(suite: &mut Suite) {
    suite.case("units of services are understood by systemd", async |lab| {
        let dir = lab.folder("units");
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut seen = 0;
        for entry in std::fs::read_dir(&deploy)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_unit = name.ends_with(".service") || name.ends_with(".timer");
            if !is_unit || name == "eebt-client.service" {
                continue;
            }
            seen += 1;
            // The programs are where they were built.
            let unit = std::fs::read_to_string(&path)?;
            let programs = binary("eebt");
            let programs = programs.parent().context("a target folder")?.display().to_string();
            let unit = unit.replace("/usr/local/bin", &programs).replace("/usr/bin", &programs);
            // Users that the set-up makes.
            let unit: String = unit
                .lines()
                .filter(|line| !line.starts_with("User="))
                .map(|line| format!("{line}\n"))
                .collect();
            let path = dir.join(&name);
            std::fs::write(&path, unit)?;
            let verify =
                done(Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path)).await?;
            let complaints = String::from_utf8_lossy(&verify.stderr);
            ensure!(!complaints.contains(&name), "{complaints}");
        }
        ensure!(seen > 0, "no units");
        Ok(())
    });
}

/// Makes the package of a program.
pub async fn package(lab: &Lab, name: &str) -> anyhow::Result<PathBuf> {
    let made = done(script("deb")?.arg(lab.folder("deb")).arg(name)).await?;
    Ok(String::from_utf8_lossy(&made.stdout).trim().into())
}

async fn done(command: &mut Command) -> anyhow::Result<Output> {
    let out = command.kill_on_drop(true).output().await.with_context(|| format!("{command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {out:?}");
    Ok(out)
}
