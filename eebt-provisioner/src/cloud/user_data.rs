//! What a machine is told at its first start: `deploy/cloud-init/user-data.sh`, filled in.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

use super::Wanted;

use crate::instance::Instance;
use crate::local::BridgeConfig;

/// EC2's limit, the smallest of all clouds' (16 KB before base64).
pub const MAX_LEN: usize = 16_384;

/// Where the guest keeps what.
const KEYS: &str = "/var/lib/eebt-bridge/keys";
const STATE: &str = "/var/lib/eebt-bridge/state";
const NETWORK: &str = "/etc/eebt-bridge/network.toml";

/// The program that a machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Where it is fetched from if the image has no such program; empty: it must be in the image.
    pub url: String,
    /// SHA-256, in hex.
    pub sha256: String,
}

impl Program {
    /// Checks both.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(url: &str, sha256: &str) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'\'' | b'"' | b'\\' | b'@');
        let is_https = url.starts_with("https://") && url.bytes().all(plain);
        if !(url.is_empty() || is_https) {
            return Err("--program-url: must be an https:// URL without quotes and blanks".into());
        }
        match HEXLOWER_PERMISSIVE.decode(sha256.as_bytes()) {
            Ok(sum) if sum.len() == 32 => Ok(Self { url: url.into(), sha256: sha256.to_lowercase() }),
            _ => Err("--program-sha256: must be 64 hexadecimal digits".into()),
        }
    }
}

/// Why there is no user-data.
#[derive(Debug, thiserror::Error)]
pub enum UserDataError {
    /// The keys can't be packed.
    #[error("can't read the keys of the new exit bridge")]
    Keys(#[source] io::Error),
    /// The private network's file can't be read.
    #[error("can't read the network file")]
    Network(#[source] io::Error),
    /// The configuration can't be written as TOML.
    #[error("can't write bridge.toml")]
    Toml(#[source] toml::ser::Error),
    /// It got too long.
    #[error("the user-data has {0} bytes, and clouds take {MAX_LEN}")]
    TooLong(usize),
}

/// The script for one machine. Has its keys in it.
///
/// # Errors
/// See [`UserDataError`].
pub fn render(
    row: &Instance,
    config: BridgeConfig,
    keys: &Path,
    network: Option<&Path>,
    wanted: &Wanted,
) -> Result<String, UserDataError> {
    let Wanted { program, ssh_key, traffic, .. } = wanted;
    let ssh = ssh_key.is_some();
    let lifetime = row.expires.duration_since(row.created).unwrap_or_default();
    let config = config.in_guest(KEYS.into(), STATE.into(), network.map(|_| NETWORK.into()));
    let config = config.carrying(*traffic, lifetime);
    let config = toml::to_string(&config).map_err(UserDataError::Toml)?;
    let network = network.map(fs::read).transpose().map_err(UserDataError::Network)?.unwrap_or_default();
    let port = row.listen.port();
    let text = include_str!("../../../deploy/cloud-init/user-data.sh")
        .replace("@EXPIRES@", &calendar(row.expires))
        .replace("@EXPIRES_SECONDS@", &seconds(row.expires).to_string())
        .replace("@LIFETIME@", &lifetime.as_secs().to_string())
        .replace("@PORTS_IN@", &if ssh { format!("22, {port}") } else { port.to_string() })
        .replace("@PORT@", &port.to_string())
        .replace("@SSH@", if ssh { "#" } else { "" })
        .replace("@SHA256@", &program.sha256)
        .replace("@URL@", &program.url)
        .replace("@STATUS@", &row.status.to_string())
        .replace("@KEYS@", &files(keys, "").map_err(UserDataError::Keys)?)
        .replace("@CONFIG@", &BASE64.encode(config.as_bytes()))
        .replace("@NETWORK@", &BASE64.encode(&network));
    if text.len() > MAX_LEN {
        return Err(UserDataError::TooLong(text.len()));
    }
    Ok(text)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time as systemd.time(7) has it.
fn calendar(at: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(at).to_string();
    format!("{} UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// Lines of shell that make the files of this folder in the current one.
fn files(folder: &Path, below: &str) -> io::Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Names are Arti's: letters, digits, `_` and `.`.
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            let _ = writeln!(text, "mkdir -m 700 {name}");
            text += &files(&entry.path(), &format!("{name}/"))?;
        } else {
            let content = BASE64.encode(&fs::read(entry.path())?);
            let _ = writeln!(text, "base64 -d > {name} <<'END'\n{content}\nEND");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{MicroUsd, Query};
    use crate::folder::StateDir;
    use crate::instance::tests::row;
    use crate::instance::{Provider, State};
    use crate::local::{Reach, Settings};
    use std::process::Command;

    fn script(ssh_key: Option<&str>, network: Option<&Path>) -> Result<String, UserDataError> {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir::open(dir.path()).unwrap().instance("x");
        folder.create().unwrap();
        fs::create_dir_all(folder.keys().join("exit_bridge")).unwrap();
        fs::write(folder.keys().join("exit_bridge/ks_ntor.x25519_private"), "secret\n").unwrap();
        let settings = Settings {
            bridge: "/bin/true".into(),
            network: network.map(Into::into),
            policy: "web".into(),
            allow_egress: Vec::new(),
            allow_ingress: Vec::new(),
            reach: Reach::Circuit,
            directories: Vec::new(),
        };
        let row =
            Instance { listen: "0.0.0.0:34567".parse().unwrap(), address: None, ..row("x", State::Keys) };
        let program = Program::new("https://example.org/eebt-bridge", &"0a".repeat(32)).unwrap();
        let wanted = Wanted {
            provider: Provider::Aws,
            regions: Vec::new(),
            query: Query { kinds: Vec::new(), arch: String::new(), image: None, on_demand: None },
            count: 1,
            max_count: 1,
            max_spend: MicroUsd(0),
            traffic: 2_000_000_000,
            max_price: None,
            program,
            ssh_key: ssh_key.map(str::to_owned),
            settings,
        };
        let config = BridgeConfig::new(&row, &folder, &wanted.settings);
        render(&row, config, &folder.keys(), network, &wanted)
    }

    #[test]
    fn the_script_is_whole() {
        let text = script(None, None).unwrap();
        assert!(text.contains("OnCalendar=1970-01-01 00:16:40 UTC\n"), "{text}");
        assert!(text.contains("tcp dport { 34567 } accept"), "{text}");
        assert!(text.contains("\nsystemctl disable --now --quiet ssh"), "{text}");
        assert!(text.contains("mkdir -m 700 exit_bridge\n"), "{text}");
        assert!(text.contains(&BASE64.encode(b"secret\n")), "{text}");
        let left = regex_lite::Regex::new("@[A-Z_0-9]+@").unwrap();
        assert!(!left.is_match(&text), "{text}");
        let checked = Command::new("sh").args(["-n", "-c", &text]).status().unwrap();
        assert!(checked.success(), "{text}");
        assert!(script(Some("mine"), None).unwrap().contains("tcp dport { 22, 34567 } accept"));
    }

    #[test]
    fn its_configuration_is_the_one_of_a_guest() {
        let text = script(None, None).unwrap();
        let config = text.split("bridge.toml <<'END'\n").nth(1).unwrap().lines().next().unwrap();
        let config = String::from_utf8(BASE64.decode(config.as_bytes()).unwrap()).unwrap();
        for line in ["keys = \"/var/lib/eebt-bridge/keys\"", "listen = \"0.0.0.0:34567\"", "drain = \"10s\""]
        {
            assert!(config.contains(line), "{line}: {config}");
        }
        // Expires at 1000.
        let limits = toml::from_str::<toml::Value>(&config).unwrap()["limits"]["total_bytes"].clone();
        assert_eq!(
            (limits["burst"].as_float(), limits["per_second"].as_float()),
            (Some(1e9), Some(1e6)),
            "{config}"
        );
        assert!(!config.contains("egress_address") && !config.contains("\naddress"), "{config}");
    }

    /// The program that was meant, as far as these tests go.
    const RIGHT: &str = "the right one";

    /// Runs the part of the script that gets the program, where `there` is in the image and `fetched` at the URL. Returns
    /// what is there in the end; `None` if the machine would end.
    fn program_after(there: Option<&str>, fetched: Option<&str>) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let url = if fetched.is_some() { "https://example.org/eebt-bridge" } else { "" };
        let text = include_str!("../../../deploy/cloud-init/user-data.sh");
        let part =
            text.split("# The program:").nth(1).unwrap().split("phase \"program is there\"").next().unwrap();
        let sum = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(RIGHT));
        let part = part.replace("/usr/local/bin/eebt-bridge", &path("program"));
        let part = part.replace("@SHA256@", &sum).replace("@URL@", url);
        if let Some(there) = there {
            fs::write(path("program"), there).unwrap();
        }
        // It is asked for nothing but HTTPS, and puts there what the web has.
        let curl = format!(
            "#!/bin/sh\ncase \"$*\" in *\"--proto =https\"*https://example.org/eebt-bridge) ;; *) exit 1;; esac\n\
             printf %s '{}' > {}\n",
            fetched.unwrap_or_default(),
            path("program.new"),
        );
        fs::write(path("curl"), curl).unwrap();
        fs::set_permissions(path("curl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = format!("set -eu\nphase() {{ :; }}\n# {part}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()));
        let is_done = command.status().unwrap().success();
        is_done.then(|| fs::read_to_string(path("program")).unwrap())
    }

    #[test]
    fn a_machine_runs_the_program_that_was_meant_or_none() {
        let right = RIGHT;
        assert_eq!(program_after(Some(right), None).as_deref(), Some(right), "it is in the image");
        assert_eq!(
            program_after(Some(right), Some("other")).as_deref(),
            Some(right),
            "nothing is fetched then"
        );
        assert_eq!(program_after(None, Some(right)).as_deref(), Some(right), "it is fetched");
        assert_eq!(program_after(Some("old"), Some(right)).as_deref(), Some(right), "an old one is replaced");
        assert_eq!(program_after(None, Some("other")), None, "another one is not run");
        assert_eq!(program_after(Some("old"), Some("other")), None);
        assert_eq!(program_after(Some("old"), None), None, "there is nowhere to get it from");
        assert_eq!(program_after(None, None), None);
    }

    #[test]
    fn what_no_cloud_takes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("network.toml");
        fs::write(&file, "x".repeat(MAX_LEN)).unwrap();
        assert!(matches!(script(None, Some(&file)), Err(UserDataError::TooLong(_))));
        for url in ["http://example.org/x", "https://example.org/' x", "file:///etc/passwd"] {
            assert!(Program::new(url, &"0a".repeat(32)).unwrap_err().contains("--program-url"), "{url}");
        }
        assert!(Program::new("", "0a").unwrap_err().contains("--program-sha256"));
    }
}
