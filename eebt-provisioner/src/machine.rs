//! What this machine has: addresses, ports, and programs.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What happens to someone who listens at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// It works.
    Works,
    /// Someone else listens there.
    Taken,
    /// The address is not one of this machine.
    NotHere,
    /// The system does not let us.
    Denied,
}

/// Tries to listen at `addr` (port 0: any), and stops at once.
pub fn try_listen(addr: SocketAddr) -> Listening {
    match TcpListener::bind(addr) {
        Ok(_) => Listening::Works,
        Err(err) => match err.kind() {
            io::ErrorKind::AddrInUse => Listening::Taken,
            io::ErrorKind::AddrNotAvailable => Listening::NotHere,
            _ => Listening::Denied,
        },
    }
}

/// The address that packets to the Internet would leave from. Asks the kernel; sends nothing.
pub fn source_address() -> Option<IpAddr> {
    // Connecting a UDP socket only looks up the route. Both are documentation addresses (RFC 5737,
    // RFC 3849).
    let towards = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        (!source.is_unspecified()).then_some(source)
    };
    towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into()).or_else(|| {
        towards(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
    })
}

/// The addresses of all interfaces but loopback and link-local ones. Empty if the kernel won't say.
pub fn interface_addresses() -> Vec<IpAddr> {
    let ip = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|addr| IpAddr::from(addr.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|addr| IpAddr::from(addr.ip())))
    };
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| ip(interface.address?))
        .filter(|ip| !ip.is_loopback() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .collect()
}

/// Where another program of ours is: beside this one, or in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join(name)))
        .find(|path| is_program(path))
        .and_then(|path| path.canonicalize().ok())
}

/// Is there a file that may be run?
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Asks an exit bridge's status page whether it serves.
///
/// # Errors
/// Why it does not, in one line: what `/ready` says, or that it can't be asked.
pub fn ready(status: SocketAddr) -> Result<(), String> {
    let ask = || -> io::Result<String> {
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&status, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        // In one piece: one that answers before it has read all would cut us off.
        let request = format!("GET /ready HTTP/1.1\r\nHost: {status}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut reply = Vec::new();
        stream.take(8192).read_to_end(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    };
    judge(&ask().map_err(|err| format!("its status page does not answer: {err}"))?)
}

/// What a reply of `/ready` means.
fn judge(reply: &str) -> Result<(), String> {
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((reply, ""));
    let code = head.split_whitespace().nth(1).unwrap_or_default();
    if head.starts_with("HTTP/1.") && code == "200" {
        return Ok(());
    }
    match body.lines().next().map(str::trim).filter(|reason| !reason.is_empty()) {
        Some(reason) if code == "503" => Err(reason.to_owned()),
        _ => Err(format!("its status page says {code:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_ready_are_understood() {
        assert_eq!(judge("HTTP/1.1 200 OK\r\n\r\nready\n"), Ok(()));
        let reply = "HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nno consensus yet\nmore";
        assert_eq!(judge(reply), Err("no consensus yet".into()));
        assert_eq!(judge("HTTP/1.1 404 Not Found\r\n\r\nx"), Err("its status page says \"404\"".into()));
        assert!(judge("").is_err());
        assert!(judge("SSH-2.0 200").is_err());
    }

    #[test]
    fn listening_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(try_listen(listener.local_addr().unwrap()), Listening::Taken);
        assert_eq!(try_listen("127.0.0.1:0".parse().unwrap()), Listening::Works);
        assert_eq!(try_listen("203.0.113.77:0".parse().unwrap()), Listening::NotHere);
    }
}
