//! Keys of the authorities: made once by `tor-gencert` and `tor`, kept in the user's cache folder.
//!
//! They guard nothing but private networks, and are kept only because making them costs seconds. Authorities
//! need theirs before anything starts, since every torrc names them; other relays make their own.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::TestNetError;
use crate::lock;
use crate::process;

/// What an authority's `keys/` folder holds before its first start.
const FILES: [&str; 5] = [
    "authority_signing_key",
    "authority_certificate",
    "secret_id_key",
    "ed25519_master_id_secret_key",
    "ed25519_master_id_public_key",
];
/// Beside them in the cache: the RSA identity in hex.
const IDENTITY: &str = "rsa_identity";
/// A certificate that ends sooner is replaced.
const MIN_REMAINING: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long to wait for another run that makes keys.
const PATIENCE: Duration = Duration::from_secs(90);

/// One authority's keys, in the cache.
#[derive(Debug, Clone)]
pub(crate) struct AuthorityKeys {
    /// Fingerprint of the key that certifies votes, in hex.
    pub(crate) v3ident: String,
    /// Its identity as a relay, in hex.
    pub(crate) rsa_identity: String,
    dir: PathBuf,
}

impl AuthorityKeys {
    /// Puts the keys where a tor with this data folder looks for them.
    pub(crate) fn install(&self, data: &Path) -> Result<(), TestNetError> {
        let keys = data.join("keys");
        private_dir(&keys)?;
        for file in FILES {
            let to = keys.join(file);
            fs::copy(self.dir.join(file), &to).map_err(TestNetError::file("write", &to))?;
        }
        Ok(())
    }
}

/// Where keys are kept: `$XDG_CACHE_HOME/eebt-testnet`, or `~/.cache/eebt-testnet`.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("eebt-testnet"))
}

/// Keys for `count` authorities, made where the cache has none that are good. Blocks, for seconds.
pub(crate) fn authorities(tor: &Path, cache: &Path, count: u8) -> Result<Vec<AuthorityKeys>, TestNetError> {
    private_dir(cache)?;
    let _lock = wait_for_lock(&cache.join("lock"))?;
    let now = SystemTime::now();
    std::thread::scope(|scope| {
        let makers: Vec<_> = (1..=count)
            .map(|i| {
                scope.spawn(move || {
                    let dir = cache.join(format!("authority{i}"));
                    match load(&dir, now) {
                        Some(keys) => Ok(keys),
                        None => make(tor, cache, &dir, now),
                    }
                })
            })
            .collect();
        makers
            .into_iter()
            .map(|maker| {
                maker.join().unwrap_or(Err(TestNetError::Malformed {
                    path: cache.to_owned(),
                    problem: "the thread that makes keys panicked",
                }))
            })
            .collect()
    })
}

/// Keys from the cache, if they are complete and their certificate holds for a while.
fn load(dir: &Path, now: SystemTime) -> Option<AuthorityKeys> {
    for file in FILES {
        if fs::metadata(dir.join(file)).ok()?.len() == 0 {
            return None;
        }
    }
    let certificate = fs::read_to_string(dir.join("authority_certificate")).ok()?;
    let field = |name: &str| certificate.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let v3ident = hex_identity(field("fingerprint")?)?;
    let published = parse_time(field("dir-key-published")?)?;
    let expires = parse_time(field("dir-key-expires")?)?;
    if published > now || expires < now + MIN_REMAINING {
        return None;
    }
    let rsa_identity = hex_identity(&fs::read_to_string(dir.join(IDENTITY)).ok()?)?;
    Some(AuthorityKeys { v3ident, rsa_identity, dir: dir.to_owned() })
}

/// Makes keys in a folder of their own and moves it into place, so that a crash leaves no half of them.
fn make(tor: &Path, cache: &Path, dir: &Path, now: SystemTime) -> Result<AuthorityKeys, TestNetError> {
    let work = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(cache)
        .map_err(TestNetError::file("create a folder in", cache))?;
    let keys = work.path().join("keys");
    private_dir(&keys)?;
    let write = |name: &str, text: &str| -> Result<PathBuf, TestNetError> {
        let path = work.path().join(name);
        fs::write(&path, text).map_err(TestNetError::file("write", &path))?;
        Ok(path)
    };
    let open = |path: &Path| File::open(path).map_err(TestNetError::file("read", path));

    // The pass phrase protects the identity key, which is thrown away with `work`.
    let phrase = write("phrase", "testnet\n")?;
    process::run(
        Command::new("tor-gencert")
            .args(["--create-identity-key", "-m", "12", "--passphrase-fd", "0"])
            .arg("-i")
            .arg(work.path().join("identity"))
            .arg("-s")
            .arg(keys.join("authority_signing_key"))
            .arg("-c")
            .arg(keys.join("authority_certificate")),
        open(&phrase)?,
    )?;
    let empty = write("empty", "")?;
    let said = process::run(
        Command::new(tor)
            .args(["--list-fingerprint", "--quiet", "--ORPort", "127.0.0.1:9001", "--Nickname", "authority"])
            .arg("--DataDirectory")
            .arg(work.path())
            .arg("--defaults-torrc")
            .arg(&empty)
            .arg("-f")
            .arg(&empty),
        open(&empty)?,
    )?;
    let unclear = |problem| TestNetError::Malformed { path: tor.to_owned(), problem };
    let identity: String = said
        .lines()
        .find_map(|l| l.strip_prefix("authority "))
        .map(|l| l.split_whitespace().collect())
        .and_then(|hex: String| hex_identity(&hex))
        .ok_or_else(|| unclear("--list-fingerprint printed no fingerprint"))?;
    fs::write(keys.join(IDENTITY), identity).map_err(TestNetError::file("write", &keys))?;

    if dir.exists() {
        fs::remove_dir_all(dir).map_err(TestNetError::file("remove", dir))?;
    }
    fs::rename(&keys, dir).map_err(TestNetError::file("create", dir))?;
    // The certificate's clock may be a second ahead of `now`, which was taken before.
    load(dir, now + PATIENCE).ok_or(TestNetError::Malformed {
        path: dir.to_owned(),
        problem: "tor-gencert wrote no usable certificate",
    })
}

fn wait_for_lock(path: &Path) -> Result<File, TestNetError> {
    let start = Instant::now();
    loop {
        if let Some(lock) = lock::try_lock(path).map_err(TestNetError::file("lock", path))? {
            return Ok(lock);
        }
        if start.elapsed() > PATIENCE {
            return Err(TestNetError::TimedOut {
                what: "another run that makes keys".into(),
                waited: PATIENCE,
                log: path.to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A folder that only its owner may read, as tor demands of folders with keys.
pub(crate) fn private_dir(path: &Path) -> Result<(), TestNetError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(TestNetError::file("create", path))
}

fn hex_identity(text: &str) -> Option<String> {
    let text = text.trim();
    (text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_uppercase())
}

/// `YYYY-MM-DD HH:MM:SS` in UTC, as in Tor's documents.
fn parse_time(text: &str) -> Option<SystemTime> {
    let numbers: Vec<u64> =
        text.trim().split(['-', ' ', ':']).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [year, month @ 1..=12, day @ 1..=31, h @ 0..24, m @ 0..60, s @ 0..=60] = numbers[..] else {
        return None;
    };
    // Years that begin in March put the leap day last, which makes days before a month a formula.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day;
    let since_epoch = days.checked_sub(719_469)?;
    Some(UNIX_EPOCH + Duration::from_secs(since_epoch * 86_400 + h * 3600 + m * 60 + s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> u64 {
        parse_time(text).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("1970-01-01 00:00:00"), 0);
        assert_eq!(seconds("2000-02-29 12:00:00"), 951_825_600);
        assert_eq!(seconds("2024-03-01 00:00:01"), 1_709_251_201);
        for bad in ["", "2024-13-01 00:00:00", "1900-01-01 00:00:00", "2024-01-01", "x-1-1 0:0:0"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_are_made_once_and_again_when_expired_or_broken() {
        let dir = tempfile::tempdir().unwrap();
        let tor = Path::new("tor");
        let first = authorities(tor, dir.path(), 1).unwrap().remove(0);
        let again = authorities(tor, dir.path(), 1).unwrap().remove(0);
        assert_eq!(first.v3ident, again.v3ident);
        assert!(load(&first.dir, SystemTime::now() + Duration::from_secs(360 * 86_400)).is_none());

        fs::write(first.dir.join("secret_id_key"), "").unwrap();
        let replaced = authorities(tor, dir.path(), 1).unwrap().remove(0);
        assert_ne!(first.v3ident, replaced.v3ident);
    }

    #[test]
    fn runs_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let idents: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| authorities(Path::new("tor"), dir.path(), 1).unwrap()))
                .collect();
            runs.into_iter().map(|r| r.join().unwrap()[0].v3ident.clone()).collect()
        });
        assert!(idents.iter().all(|id| *id == idents[0]), "{idents:?}");
    }
}
