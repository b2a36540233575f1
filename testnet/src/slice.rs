//! Which addresses a network may use: 127.N.0.0/16, with N locked for as long as the network lives.
//!
//! | addresses | for |
//! |---|---|
//! | 127.N.1.x | authorities |
//! | 127.N.2.x | middles |
//! | 127.N.3.x | exits |
//! | 127.N.4.1 | the plain Tor client |
//! | 127.N.8.x | origins |
//! | 127.N.64.0 and up | whoever asks for a spare address |

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::error::TestNetError;
use crate::lock;
use crate::torrc::Role;

/// The second bytes that networks share among them: 127.64 to 127.126.
const SLICES: std::ops::RangeInclusive<u8> = 64..=126;
/// The port that relays listen on when nobody else does.
const OR_PORT: u16 = 9001;

/// The addresses of one network.
#[derive(Debug)]
pub(crate) struct Slice {
    /// The N in 127.N.
    n: u8,
    /// How many spare addresses were handed out.
    spare: AtomicU16,
    /// Held, never read.
    _lock: File,
}

impl Slice {
    /// The first free slice. Locks live in a folder that all users share.
    pub(crate) fn take() -> Result<Self, TestNetError> {
        let folder = std::env::temp_dir().join("eebt-testnet-addresses");
        std::fs::create_dir_all(&folder).map_err(TestNetError::file("create", &folder))?;
        // Like /tmp itself. It fails when another user made the folder, who did the same.
        let _ = std::fs::set_permissions(&folder, Permissions::from_mode(0o1777));
        Self::take_in(&folder)
    }

    fn take_in(folder: &Path) -> Result<Self, TestNetError> {
        for n in SLICES {
            // A lock that cannot be opened counts as held: one slice of many is lost, nothing breaks.
            let Ok(Some(file)) = lock::try_lock(&folder.join(format!("127.{n}.lock"))) else {
                continue;
            };
            let slice = Self { n, spare: AtomicU16::new(0), _lock: file };
            // A network whose TMPDIR differs holds another lock, but the same port.
            if is_free(SocketAddr::from((slice.node(Role::Authority, 0), OR_PORT))) {
                return Ok(slice);
            }
        }
        Err(TestNetError::NoFreeSlice)
    }

    /// What all its addresses begin with, such as `127.64`.
    pub(crate) fn prefix(&self) -> String {
        format!("127.{}", self.n)
    }

    /// The address of the `index`-th node of a role.
    pub(crate) fn node(&self, role: Role, index: u8) -> Ipv4Addr {
        let third = match role {
            Role::Authority => 1,
            Role::Middle => 2,
            Role::Exit => 3,
        };
        Ipv4Addr::new(127, self.n, third, index + 1)
    }

    /// The address of the plain Tor client.
    pub(crate) fn client(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, self.n, 4, 1)
    }

    /// The first address for origins.
    pub(crate) fn origins(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, self.n, 8, 1)
    }

    /// An address that nothing else on this network was given.
    pub(crate) fn spare(&self) -> Ipv4Addr {
        let k = self.spare.fetch_add(1, Ordering::Relaxed) % (128 * 254);
        // Never .0 or .255, which some programs take for a network or a broadcast address.
        let (third, fourth) = (64 + k / 254, 1 + k % 254);
        Ipv4Addr::new(127, self.n, (third & 0xff) as u8, (fourth & 0xff) as u8)
    }
}

/// A port to listen on: the preferred one, or any when that is taken (by a listener on 0.0.0.0, say).
pub(crate) fn free_port(ip: Ipv4Addr, preferred: u16) -> Result<u16, TestNetError> {
    let wanted = SocketAddr::from((ip, preferred));
    if is_free(wanted) {
        return Ok(preferred);
    }
    let any = SocketAddr::from((ip, 0));
    TcpListener::bind(any)
        .and_then(|listener| listener.local_addr())
        .map(|addr| addr.port())
        .map_err(|source| TestNetError::Listen { addr: any, source })
}

fn is_free(addr: SocketAddr) -> bool {
    TcpListener::bind(addr).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_slices_differ_and_a_dropped_one_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Slice::take_in(dir.path()).unwrap();
        let second = Slice::take_in(dir.path()).unwrap();
        assert_ne!(first.n, second.n);
        let n = first.n;
        drop(first);
        assert_eq!(Slice::take_in(dir.path()).unwrap().n, n);
    }

    #[test]
    fn spare_addresses_differ_and_stay_in_the_slice() {
        let dir = tempfile::tempdir().unwrap();
        let slice = Slice::take_in(dir.path()).unwrap();
        let spares: std::collections::HashSet<_> = (0..1000).map(|_| slice.spare()).collect();
        assert_eq!(spares.len(), 1000);
        for ip in spares {
            assert_eq!(ip.octets()[..2], [127, slice.n]);
            assert!(ip.octets()[2] >= 64 && ![0, 255].contains(&ip.octets()[3]));
        }
    }

    #[test]
    fn a_taken_port_is_replaced() {
        let ip = Ipv4Addr::LOCALHOST;
        let held = TcpListener::bind((ip, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        assert_ne!(free_port(ip, port).unwrap(), port);
    }
}
