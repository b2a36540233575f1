//! Which sockets a process has, as Linux shows them to its owner in `/proc`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The tables of a network namespace below `/proc/PID/net`.
const TABLES: [&str; 4] = ["tcp", "tcp6", "udp", "udp6"];

/// State of a TCP socket that waits for connections.
const LISTEN: &str = "0A";

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Socket {
    pub(super) kind: Kind,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// TCP that waits for connections.
    Listening,
    /// Any other TCP: it has a remote end.
    Tcp,
    /// UDP, connected or not.
    Udp,
}

/// The TCP and UDP sockets that `pid` (a number, or `self`) has open.
///
/// # Errors
/// There is no `/proc` of Linux, or the process is somebody else's.
pub(super) fn of_process(pid: &str) -> io::Result<Vec<Socket>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed since then has no link any more.
        if let Ok(link) = entry.and_then(|entry| std::fs::read_link(entry.path())) {
            inodes.extend(link.to_str().and_then(inode));
        }
    }
    let all = in_namespace_of(pid)?;
    Ok(inodes.iter().filter_map(|inode| all.get(inode)).copied().collect())
}

/// The process of ours that listens on `addr`, if one does.
///
/// # Errors
/// There is no `/proc` of Linux.
pub(super) fn listener_on(addr: SocketAddr) -> io::Result<Option<u32>> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Other people's processes do not show their files.
        let Ok(sockets) = of_process(&pid.to_string()) else { continue };
        if sockets.iter().any(|s| s.kind == Kind::Listening && s.local == addr) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// All TCP and UDP sockets in the network namespace of `pid`, by inode.
fn in_namespace_of(pid: &str) -> io::Result<HashMap<u64, Socket>> {
    let mut all = HashMap::new();
    for table in TABLES {
        match std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => {
                all.extend(text.lines().skip(1).filter_map(|line| entry(line, table.starts_with("udp"))))
            }
            // A system without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The number in `socket:[12345]`.
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// One line of a table (proc(5)): number, local, remote, state, ..., inode as the tenth word.
fn entry(line: &str, udp: bool) -> Option<(u64, Socket)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kind = match (udp, *words.get(3)?) {
        (true, _) => Kind::Udp,
        (false, LISTEN) => Kind::Listening,
        (false, _) => Kind::Tcp,
    };
    let socket = Socket { kind, local: address(words.get(1)?)?, remote: address(words.get(2)?)? };
    Some((words.get(9)?.parse().ok()?, socket))
}

/// `0100007F:1F90`: the kernel prints each 32 bits of an address as a number of the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_tables_are_read() {
        let line =
            "   3: 0100007F:23BE 0200007F:0050 01 00000000:00000000 00:00000000 00000000  1000  0 4711 1 0";
        let tcp = Socket {
            kind: Kind::Tcp,
            local: ([127, 0, 0, 1], 9150).into(),
            remote: ([127, 0, 0, 2], 80).into(),
        };
        assert_eq!(entry(line, false), Some((4711, tcp)));
        let v6 = address("B80D0120000000000000000001000000:01BB");
        assert_eq!(v6, Some("[2001:db8::1]:443".parse().unwrap()));
        let mapped = address("0000000000000000FFFF00000100007F:0035");
        assert_eq!(mapped, Some("127.0.0.1:53".parse().unwrap()));
        for bad in ["", "x", "0100007F", "01:02", "0100007F:xyz"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn sockets_of_this_process_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(addr).unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0")
            .or_else(|_| std::net::UdpSocket::bind("127.0.0.1:0"))
            .unwrap();
        let sockets = of_process("self").unwrap();
        assert!(sockets.iter().any(|s| s.kind == Kind::Listening && s.local == addr));
        assert!(sockets.iter().any(|s| s.kind == Kind::Tcp && s.remote == addr));
        assert!(sockets.iter().any(|s| s.kind == Kind::Udp && s.local == udp.local_addr().unwrap()));
        assert_eq!(listener_on(addr).unwrap(), Some(std::process::id()));
        drop(stream);
        assert!(!of_process("self").unwrap().iter().any(|s| s.kind == Kind::Tcp && s.remote == addr));
    }
}
