//! Lists of addresses that somebody blocks: an exit bridge whose address is found there is of little use.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// Longest list that is read, in bytes.
const MAX_LEN: u64 = 64 << 20;

/// How long a list may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a list comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    /// `https://...`, fetched directly, not over Tor.
    Url(String),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            None if text.is_empty() => Err("is empty".into()),
            None => Ok(Self::File(text.into())),
            Some(("https", rest)) if !rest.is_empty() => Ok(Self::Url(text.into())),
            Some(_) => Err("must be a file or an https:// URL: others can be changed on the way".into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file.
    #[error("can't read the block list {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The request.
    #[error("can't fetch the block list {url}")]
    Fetch {
        /// Which.
        url: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// Too long, cut off, or not text.
    #[error("the block list {from} is no text of at most {} MB", MAX_LEN >> 20)]
    Body {
        /// Which.
        from: String,
        /// What the system says.
        source: io::Error,
    },
    /// It has lines, and no address.
    #[error(
        "the block list {from} has no address in it: expected an IP address or a range on each line, as in its line {line:?}"
    )]
    NoList {
        /// Which.
        from: String,
        /// The first line.
        line: String,
    },
}

/// Addresses and ranges.
#[derive(Debug, Default)]
pub struct BlockList {
    addresses: HashSet<IpAddr>,
    ranges: Vec<IpNet>,
}

impl BlockList {
    /// Reads or fetches one.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn get(source: &Source) -> Result<Self, ListError> {
        let from = source.to_string();
        let mut text = String::new();
        let read = match source {
            Source::File(path) => {
                let failed = |source| ListError::Read { path: path.clone(), source };
                std::fs::File::open(path).map_err(failed)?.take(MAX_LEN).read_to_string(&mut text)
            }
            Source::Url(url) => {
                let fetch = || {
                    let client =
                        reqwest::blocking::Client::builder().timeout(PATIENCE).https_only(true).build()?;
                    client.get(url).send()?.error_for_status()
                };
                // The error names the URL itself.
                let failed = |source: reqwest::Error| ListError::Fetch {
                    url: url.clone(),
                    source: source.without_url(),
                };
                fetch().map_err(failed)?.take(MAX_LEN).read_to_string(&mut text)
            }
        };
        match read {
            Ok(length) if (length as u64) < MAX_LEN => {}
            Ok(_) => return Err(ListError::Body { from, source: io::ErrorKind::FileTooLarge.into() }),
            Err(source) => return Err(ListError::Body { from, source }),
        }
        Self::parse(&text).map_err(|line| ListError::NoList { from, line: line.to_owned() })
    }

    /// An address or a range on each line; what follows a blank, `#` or `;` is a remark. Lines that are something else are
    /// left out, unless all are: then the first one is the error.
    fn parse(text: &str) -> Result<Self, &str> {
        let mut list = Self::default();
        let mut wrong = None;
        for line in text.lines() {
            let entry = line.split([' ', '\t', '#', ';', ',']).next().unwrap_or_default();
            if entry.is_empty() {
                continue;
            }
            match (entry.parse::<IpAddr>(), entry.parse::<IpNet>()) {
                (Ok(ip), _) => drop(list.addresses.insert(ip.to_canonical())),
                (_, Ok(range)) => list.ranges.push(range),
                _ => drop(wrong.get_or_insert(line)),
            }
        }
        match wrong {
            Some(line) if list.is_empty() => Err(line),
            _ => Ok(list),
        }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.addresses.len() + self.ranges.len()
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Is this address on it?
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.contains(&ip) || self.ranges.iter().any(|range| range.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_addresses_ranges_and_remarks() {
        let text =
            "# exits\n1.2.3.4\n5.6.7.0/24 ; somebody's\n\n2001:db8::/32\n::ffff:9.9.9.9\nwhat is this\n";
        let list = BlockList::parse(text).unwrap();
        assert_eq!(list.len(), 4);
        for (ip, expected) in [
            ("1.2.3.4", true),
            ("5.6.7.255", true),
            ("5.6.8.0", false),
            ("2001:db8::1", true),
            ("9.9.9.9", true),
        ] {
            assert_eq!(list.contains(ip.parse().unwrap()), expected, "{ip}");
        }
        assert!(BlockList::parse("# none today\n").unwrap().is_empty());
        assert_eq!(BlockList::parse("<html>\nno\n").unwrap_err(), "<html>");
    }

    #[test]
    fn what_is_no_list_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let get = || BlockList::get(&Source::File(path.clone())).map_err(|error| error.to_string());
        assert!(get().unwrap_err().contains("can't read"));
        std::fs::write(&path, "<html>").unwrap();
        assert!(get().unwrap_err().contains("no address in it"));
        std::fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert!(get().unwrap_err().contains("no text"));
        std::fs::write(&path, "1.2.3.4").unwrap();
        assert_eq!(get().unwrap().len(), 1);
    }

    #[test]
    fn sources_are_files_or_safe_urls() {
        assert_eq!("a/list".parse(), Ok(Source::File("a/list".into())));
        assert_eq!("https://a.example/x".parse(), Ok(Source::Url("https://a.example/x".into())));
        for bad in ["", "http://a.example/x", "https://", "ftp://a"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
