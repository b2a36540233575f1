//! Ports of this machine that only a direct connection from this machine reaches.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

/// One such port.
pub(super) struct Trap(TcpListener, SocketAddr);

impl Trap {
    /// One on loopback, and one on each address by which this machine reaches the Internet.
    pub(super) fn set() -> Vec<Self> {
        // To connect a UDP socket sends nothing; the system only says which address it would send from.
        let from = |bind: &str, towards: &str| -> Option<IpAddr> {
            let socket = UdpSocket::bind(bind).ok()?;
            socket.connect(towards).ok()?;
            Some(socket.local_addr().ok()?.ip())
        };
        let mut ips = vec![IpAddr::from([127, 0, 0, 1])];
        ips.extend(from("0.0.0.0:0", "192.0.2.1:9"));
        ips.extend(from("[::]:0", "[2001:db8::1]:9"));
        ips.dedup();
        ips.into_iter().filter_map(Self::at).collect()
    }

    fn at(ip: IpAddr) -> Option<Self> {
        let listener = TcpListener::bind((ip, 0)).ok()?;
        listener.set_nonblocking(true).ok()?;
        let addr = listener.local_addr().ok()?;
        Some(Self(listener, addr))
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.1
    }

    /// Did this machine connect since the last time? Others may, and mean nothing: ports get scanned.
    pub(super) fn was_reached(&self) -> bool {
        let mut reached = false;
        while let Ok((_, peer)) = self.0.accept() {
            reached |= peer.ip().is_loopback() || peer.ip() == self.1.ip();
        }
        reached
    }
}
