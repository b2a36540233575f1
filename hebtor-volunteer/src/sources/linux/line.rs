//! The line: through which device does it leave, is that a tunnel, and who uses it besides us?

use std::collections::VecDeque;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::router;
use crate::sources::{Facts, Source};
use crate::usage::on_the_line;

/// The rate is taken over this time, since what we count as carried may still wait in a buffer.
const OVER: Duration = Duration::from_secs(10);

/// Addresses beyond any local network, one a family: root name servers. Nothing is ever sent to them.
const FAR: [&str; 2] = ["198.41.0.4:53", "[2001:503:ba3e::2:30]:53"];

/// Watches the devices with the default routes.
pub struct Line {
    own_bytes: Arc<AtomicU64>,
    devices: PathBuf,
    samples: VecDeque<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    at: Instant,
    names: Vec<String>,
    on_the_line: u64,
    own: u64,
}

impl Line {
    /// `own_bytes` counts what we carry to and from targets.
    pub fn new(own_bytes: Arc<AtomicU64>) -> Self {
        Self { own_bytes, devices: "/sys/class/net".into(), samples: VecDeque::new() }
    }

    fn other_traffic(&mut self, now: Sample) -> Option<u64> {
        let fits = |last: &Sample| {
            last.names == now.names && last.on_the_line <= now.on_the_line && last.own <= now.own
        };
        if !self.samples.back().is_some_and(fits) {
            self.samples.clear();
        }
        while self.samples.get(1).is_some_and(|second| now.at.duration_since(second.at) >= OVER) {
            self.samples.pop_front();
        }
        let rate = self.samples.front().and_then(|first| rate(first, &now));
        self.samples.push_back(now);
        rate
    }
}

impl Source for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn look(&mut self) -> Facts {
        let names = default_devices();
        if names.is_empty() {
            self.samples.clear();
            return Facts::default();
        }
        let vpn = names.iter().any(|name| is_tunnel(&self.devices.join(name)));
        let on_the_line = names.iter().map(|name| bytes(&self.devices.join(name))).sum::<Option<u64>>();
        let own = self.own_bytes.load(Ordering::Relaxed);
        let other_traffic = on_the_line.and_then(|on_the_line| {
            self.other_traffic(Sample { at: Instant::now(), names, on_the_line, own })
        });
        Facts { vpn: Some(vpn), other_traffic, line: router::hardware_address(), ..Facts::default() }
    }
}

/// Bytes a second that are not ours.
fn rate(first: &Sample, last: &Sample) -> Option<u64> {
    let own = on_the_line(last.own - first.own);
    let others = (last.on_the_line - first.on_the_line).saturating_sub(own);
    let milliseconds = last.at.duration_since(first.at).as_millis().try_into().ok()?;
    others.saturating_mul(1000).checked_div(milliseconds)
}

/// The devices through which the far Internet is reached, one a family at most.
///
/// The kernel is asked to choose a route, as it would for any program: the table of routes alone misses
/// what WireGuard does by policy rules, and OpenVPN by two halves of a default route.
fn default_devices() -> Vec<String> {
    let addresses: Vec<_> = FAR.iter().filter_map(|far| local_address(far)).collect();
    if addresses.is_empty() { Vec::new() } else { devices_of(&addresses) }
}

fn local_address(far: &str) -> Option<IpAddr> {
    let far: SocketAddr = far.parse().ok()?;
    let any: IpAddr = if far.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(far).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn devices_of(addresses: &[IpAddr]) -> Vec<String> {
    let is_one = |known: SockaddrStorage| {
        let v4 = known.as_sockaddr_in().map(|known| IpAddr::from(known.ip()));
        let v6 = || known.as_sockaddr_in6().map(|known| IpAddr::from(known.ip()));
        v4.or_else(v6).is_some_and(|ip| addresses.contains(&ip))
    };
    let all = getifaddrs().into_iter().flatten();
    let with_one = all.filter(|device| device.address.is_some_and(is_one));
    let mut names: Vec<_> = with_one.map(|device| device.interface_name).collect();
    names.sort();
    names.dedup();
    names
}

/// A device of /sys/class/net that packs packets into others: tun, tap, WireGuard, or one without a link layer
/// that is no modem. A dialled line (PPP) is none.
fn is_tunnel(device: &Path) -> bool {
    const NO_LINK_LAYER: &str = "65534";
    let read = |file| fs::read_to_string(device.join(file)).unwrap_or_default();
    let uevent = read("uevent");
    let is = |kind| uevent.lines().any(|line| line.strip_prefix("DEVTYPE=") == Some(kind));
    device.join("tun_flags").exists()
        || is("wireguard")
        || (read("type").trim() == NO_LINK_LAYER && !is("wwan"))
}

/// Bytes that a device of /sys/class/net has carried, both ways.
fn bytes(device: &Path) -> Option<u64> {
    let read =
        |file| fs::read_to_string(device.join("statistics").join(file)).ok()?.trim().parse::<u64>().ok();
    Some(read("rx_bytes")?.wrapping_add(read("tx_bytes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("statistics")).unwrap();
        for (file, text) in files {
            fs::write(folder.path().join(file), text).unwrap();
        }
        folder
    }

    #[test]
    fn tunnels_are_known_by_their_device() {
        let is = |files: &[(&str, &str)]| is_tunnel(device(files).path());
        assert!(is(&[
            ("tun_flags", "0x1001\n"),
            ("type", "65534\n"),
            ("uevent", "INTERFACE=tun0\nIFINDEX=5\n")
        ]));
        assert!(is(&[("tun_flags", "0x1002\n"), ("type", "1\n"), ("uevent", "INTERFACE=tap0\nIFINDEX=6\n")]));
        assert!(is(&[("type", "65534\n"), ("uevent", "DEVTYPE=wireguard\nINTERFACE=wg0\nIFINDEX=7\n")]));
        assert!(is(&[("type", "65534\n"), ("uevent", "INTERFACE=xfrm0\nIFINDEX=8\n")]));
    }

    #[test]
    fn lines_are_no_tunnels() {
        let is = |files: &[(&str, &str)]| is_tunnel(device(files).path());
        assert!(!is(&[("type", "1\n"), ("uevent", "INTERFACE=enp3s0\nIFINDEX=2\n")]));
        assert!(!is(&[("type", "1\n"), ("uevent", "DEVTYPE=wlan\nINTERFACE=wlp2s0\nIFINDEX=3\n")]));
        assert!(!is(&[("type", "512\n"), ("uevent", "DEVTYPE=ppp\nINTERFACE=ppp0\nIFINDEX=4\n")]));
        assert!(!is(&[("type", "65534\n"), ("uevent", "DEVTYPE=wwan\nINTERFACE=wwan0\nIFINDEX=9\n")]));
        assert!(!is_tunnel(Path::new("/nowhere")));
    }

    #[test]
    fn bytes_count_both_ways() {
        let device = device(&[("statistics/rx_bytes", "1200\n"), ("statistics/tx_bytes", "34\n")]);
        assert_eq!(bytes(device.path()), Some(1234));
        assert_eq!(bytes(Path::new("/nowhere")), None);
    }

    struct Clock(Line, Instant);

    impl Clock {
        fn new() -> Self {
            Self(Line::new(Arc::default()), Instant::now())
        }

        fn at(&mut self, second: u64, name: &str, on_the_line: u64, own: u64) -> Option<u64> {
            let at = self.1 + Duration::from_secs(second);
            self.0.other_traffic(Sample { at, names: vec![name.into()], on_the_line, own })
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut line = Clock::new();
        assert_eq!(line.at(0, "eth0", 5_000, 0), None);
        assert_eq!(line.at(2, "eth0", 7_000, 0), Some(1_000));
        for second in (4..=30).step_by(2) {
            line.at(second, "eth0", 7_000, 0);
        }
        assert_eq!(line.at(32, "eth0", 7_000, 0), Some(0));
        assert_eq!(line.at(34, "eth0", 27_000, 0), Some(2_000));
        assert!(line.0.samples.len() <= 7);
    }

    #[test]
    fn what_we_carry_is_not_other_traffic() {
        let mut line = Clock::new();
        line.at(0, "eth0", 0, 0);
        assert_eq!(line.at(10, "eth0", 2_200_000, 1_000_000), Some(0));
        assert_eq!(line.at(20, "eth0", 4_700_000, 2_000_000), Some(30_000));
        assert_eq!(line.at(30, "eth0", 4_700_000, 3_000_000), Some(0));
    }

    #[test]
    fn another_device_starts_another_count() {
        let mut line = Clock::new();
        line.at(0, "eth0", 1_000_000, 0);
        assert_eq!(line.at(2, "wlan0", 9_000_000, 0), None);
        assert_eq!(line.at(4, "wlan0", 9_000_200, 0), Some(100));
        assert_eq!(line.at(6, "wlan0", 50, 0), None);
    }

    #[test]
    fn the_kernel_names_the_device_of_an_address() {
        assert_eq!(devices_of(&[[127, 0, 0, 1].into()]), ["lo"]);
        assert!(devices_of(&[[192, 0, 2, 1].into()]).is_empty());
    }
}
