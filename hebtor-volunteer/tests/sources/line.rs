//! Lines and tunnels, in a network of our own.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use hebtor_volunteer::sources::linux::line::Line;
use hebtor_volunteer::sources::{Facts, Source};

use super::child::run;

/// Set in the process that runs inside.
const INSIDE: &str = "SOURCES_TEST_INSIDE";

#[test]
fn the_line_is_what_carries_us_and_a_tunnel_is_noticed() {
    if env::var_os(INSIDE).is_some() {
        return inside();
    }
    // Mounts of its own too: /sys shows the devices of whoever mounted it.
    let mut own = Command::new("unshare");
    own.args(["--map-root-user", "--net", "--mount", "--"]).arg(env::current_exe().unwrap());
    own.args(["--exact", "line::the_line_is_what_carries_us_and_a_tunnel_is_noticed", "--nocapture"]);
    run(own.env(INSIDE, "yes"), "util-linux iproute2");
}

fn sh(command: &str) {
    run(Command::new("sh").args(["-ec", command]), "mount iproute2 iputils-ping");
}

fn inside() {
    sh("mount -t sysfs sysfs /sys");
    let own = Arc::new(AtomicU64::new(0));
    let mut line = Line::new(own.clone());
    assert_eq!(line.look(), Facts::default(), "there is no line");

    sh("ip link add home type veth peer name router; ip link set router up;
        ip addr add 192.168.7.2/24 dev home; ip link set home up; ip route add default via 192.168.7.1;
        ip neigh add 192.168.7.1 lladdr 02:00:00:00:00:01 dev home");
    let home = Facts { vpn: Some(false), line: Some("02:00:00:00:00:01".into()), ..Facts::default() };
    assert_eq!(line.look(), home);

    // 100 packets of 1000 bytes leave, and nobody answers.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let send = || {
        for _ in 0..100 {
            socket.send_to(&[0; 1000], "192.0.2.1:9").unwrap();
        }
    };
    send();
    sleep(Duration::from_secs(1));
    let others = line.look().other_traffic.unwrap();
    assert!((40_000..120_000).contains(&others), "{others}");

    let mut line = Line::new(own.clone());
    line.look();
    send();
    own.fetch_add(50_000, Ordering::Relaxed);
    sleep(Duration::from_secs(1));
    assert!(line.look().other_traffic.unwrap() < 2_000, "it was ours");

    // As OpenVPN does.
    sh("ip tuntap add vpn0 mode tun; ip addr add 10.8.0.2/24 dev vpn0; ip link set vpn0 up;
        ip route add 0.0.0.0/1 dev vpn0; ip route add 128.0.0.0/1 dev vpn0");
    assert_eq!(line.look(), Facts { vpn: Some(true), ..home });
    sh("ip route del 0.0.0.0/1; ip route del 128.0.0.0/1");
    assert_eq!(line.look().vpn, Some(false), "the tunnel is there, and not used");

    // As wg-quick does.
    sh("ip route add default dev vpn0 table 51820; ip rule add not fwmark 51820 table 51820");
    assert_eq!(line.look().vpn, Some(true));
}
