//! A node of Chutney's: who it is, by its torrc.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::super::{Plan, write_torrc};
use crate::error::TestNetError;
use crate::keys::private_dir;
use crate::process::Tor;
use crate::torrc::Role;

/// What a torrc says of one process alone, and what another tor cannot take over from it.
const OF_ONE_PROCESS: [&str; 5] = ["Log", "Nickname", "PidFile", "RunAsDaemon", "ControlSocket"];

/// A node that Chutney has configured.
#[derive(Debug)]
pub(super) struct Node {
    /// Its nickname where the network knows it by that, else the tag that its network file gives it.
    pub(super) name: String,
    pub(super) torrc: PathBuf,
    text: String,
}

impl Node {
    pub(super) fn read(torrc: &Path) -> Result<Self, TestNetError> {
        let torrc = torrc.canonicalize().map_err(TestNetError::file("open", torrc))?;
        let text = fs::read_to_string(&torrc).map_err(TestNetError::file("read", &torrc))?;
        Ok(Self { name: name(&torrc, &text), torrc, text })
    }

    fn dir(&self) -> &Path {
        self.torrc.parent().unwrap_or(&self.torrc)
    }

    /// Every value of an option.
    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        values(&self.text, key)
    }

    /// The relay that it is, if it is one that publishes a descriptor.
    pub(super) fn relay(&self) -> Result<Option<Plan>, TestNetError> {
        plan(&self.name, &self.text)
            .map_err(|problem| TestNetError::Malformed { path: self.torrc.clone(), problem })
    }

    /// The address of a port, which is the last one where there are several.
    pub(super) fn address(&self, key: &str) -> Result<Option<SocketAddr>, TestNetError> {
        let Some(value) = self.all(key).next_back().filter(|value| *value != "0") else { return Ok(None) };
        let port = value.parse().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let problem = "a port is no address";
        port.or_else(|_| value.parse())
            .map(Some)
            .map_err(|_| TestNetError::Malformed { path: self.torrc.clone(), problem })
    }

    /// Makes its folder in `nodes`, as every node has one.
    pub(super) fn link(&self, dir: &Path) -> Result<(), TestNetError> {
        private_dir(dir)?;
        let of_all = |line: &&str| !OF_ONE_PROCESS.contains(&line.split(' ').next().unwrap_or_default());
        let torrc: String = self.text.lines().filter(of_all).map(|line| format!("{line}\n")).collect();
        write_torrc(dir, &torrc)?;
        for (from, to) in [(self.dir().to_owned(), "data"), (self.dir().join("notice.log"), "log")] {
            let link = dir.join(to);
            symlink(from, &link).map_err(TestNetError::file("link", link))?;
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.dir().join("pid")).ok()?.trim().parse().ok()
    }

    pub(super) fn adopt(&self, pid: u32) -> Tor {
        Tor::adopt(&self.name, self.dir().join("notice.log"), pid, self.torrc.clone())
    }
}

/// Every value of an option of a torrc.
fn values<'a>(text: &'a str, key: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(move |(found, _)| found.eq_ignore_ascii_case(key)).map(|(_, value)| value.trim())
}

fn name(torrc: &Path, text: &str) -> String {
    let is_listed = plan("", text).is_ok_and(|plan| plan.is_some());
    let nickname = values(text, "Nickname").next_back().filter(|_| is_listed);
    let folder = torrc.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    nickname.unwrap_or(folder.trim_start_matches(|c: char| c.is_ascii_digit())).to_owned()
}

/// What a torrc says of a relay that publishes a descriptor.
fn plan(name: &str, text: &str) -> Result<Option<Plan>, &'static str> {
    let is = |key, value| values(text, key).next_back() == Some(value);
    let port = |value: &str| {
        let address = value.split(' ').next().unwrap_or_default();
        address.rsplit(':').next().and_then(|port| port.parse().ok())
    };
    let ports: Vec<&str> = values(text, "ORPort").filter(|value| !value.starts_with('[')).collect();
    let Some(orport) = ports.iter().find(|value| !value.contains("NoAdvertise")) else { return Ok(None) };
    if is("PublishServerDescriptor", "0") {
        return Ok(None);
    }
    let role = if is("V3AuthoritativeDirectory", "1") {
        Role::Authority
    } else if is("ExitRelay", "1") {
        Role::Exit
    } else {
        Role::Middle
    };
    let address = values(text, "Address").next_back().unwrap_or("127.0.0.1");
    Ok(Some(Plan {
        nickname: name.to_owned(),
        role,
        address: address.parse().map_err(|_| "its Address is no IPv4 address")?,
        orport: port(orport).ok_or("its ORPort has no number")?,
        listen_port: ports.iter().find(|value| value.contains("NoAdvertise")).and_then(|value| port(value)),
        dirport: None,
        keys: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Chutney of 2021 writes it by our template.
    const EXIT: &str = "Nickname exit1\nAddress 127.64.3.1\nORPort 127.64.3.1:9001 IPv4Only NoListen\n\
                        ORPort 127.64.3.1:9101 IPv4Only NoAdvertise\nSocksPort 0\nExitRelay 1\n";

    #[test]
    fn relays_are_known_by_what_their_torrc_says() {
        let exit = plan("exit1", EXIT).unwrap().unwrap();
        assert_eq!((exit.role, exit.orport, exit.listen_port), (Role::Exit, 9001, Some(9101)));
        assert_eq!(exit.address, Ipv4Addr::new(127, 64, 3, 1));
        let text = "OrPort 127.64.1.1:5107\nOrPort [::1]:5107\nAddress 127.64.1.1\nExitRelay 0\n";
        let middle = plan("m", text).unwrap().unwrap();
        assert_eq!((middle.role, middle.orport, middle.listen_port), (Role::Middle, 5107, None));
        let authority = plan("a", &(text.to_owned() + "V3AuthoritativeDirectory 1\n")).unwrap().unwrap();
        assert_eq!(authority.role, Role::Authority);
    }

    #[test]
    fn clients_and_unlisted_exits_are_no_relays_of_the_network() {
        assert!(plan("c", "SocksPort 127.64.4.1:9050\n").unwrap().is_none());
        assert!(plan("u", &(EXIT.to_owned() + "PublishServerDescriptor 0\n")).unwrap().is_none());
        assert!(plan("x", "ORPort auto\n").is_err());
    }

    #[test]
    fn relays_have_their_nickname_and_others_their_tag() {
        assert_eq!(name(Path::new("/n/005exit1/torrc"), EXIT), "exit1");
        assert_eq!(name(Path::new("/n/011client/torrc"), "Nickname test011client\n"), "client");
        let later = "Nickname test000middle1\nOrPort 127.64.2.1:5100\n";
        assert_eq!(name(Path::new("/n/000middle1/torrc"), later), "test000middle1");
        let unlisted = later.to_owned() + "PublishServerDescriptor 0\n";
        assert_eq!(name(Path::new("/n/012unlisted1/torrc"), &unlisted), "unlisted1");
    }
}
