//! GNOME, logind and NetworkManager, as they answer on a bus.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hebtor_volunteer::sources::linux::{logind, mutter, network_manager};
use hebtor_volunteer::sources::{Facts, Source};
use zbus::zvariant::Value;

use super::bus::{Bus, Service};
use super::child::until;

const UNKNOWN: Facts = Facts {
    idle: None,
    elsewhere: None,
    line: None,
    on_battery: None,
    metered: None,
    vpn: None,
    captive_portal: None,
    full_screen: None,
    other_traffic: None,
};

fn seconds(idle: u64) -> Option<Duration> {
    Some(Duration::from_secs(idle))
}

fn gnome(bus: &Bus) -> Service {
    let monitor = "org.gnome.Mutter.IdleMonitor";
    bus.service(monitor, "/org/gnome/Mutter/IdleMonitor/Core", monitor)
}

#[test]
fn gnome_tells_idle_time() {
    let bus = Bus::start();
    let gnome = gnome(&bus);
    gnome.answer("GetIdletime", "t", "ret = 90500");
    let mut source = mutter::source(bus.address());
    assert_eq!(source.look(), Facts { idle: Some(Duration::from_millis(90_500)), ..UNKNOWN });
    gnome.answer("GetIdletime", "t", "ret = 0");
    assert_eq!(source.look(), Facts { idle: seconds(0), ..UNKNOWN });
}

#[test]
fn a_bus_or_a_service_that_comes_late_or_again_is_found() {
    let mut bus = Bus::start();
    let mut source = mutter::source(bus.address());
    assert_eq!(source.look(), UNKNOWN, "there is no GNOME yet");

    let first = gnome(&bus);
    first.answer("GetIdletime", "t", "ret = 1000");
    until(&mut source, |facts| facts.idle == seconds(1));
    drop(first);
    until(&mut source, |facts| *facts == UNKNOWN);

    bus.stop();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(source.look(), UNKNOWN, "there is no bus");
    bus.restart();
    let second = gnome(&bus);
    second.answer("GetIdletime", "t", "ret = 2000");
    until(&mut source, |facts| facts.idle == seconds(2));

    bus.stop();
    assert_eq!(source.look(), UNKNOWN, "the bus is gone");
}

#[test]
fn a_service_that_hangs_holds_up_nobody() {
    let bus = Bus::start();
    let gnome = gnome(&bus);
    gnome.answer("GetIdletime", "t", "import time; time.sleep(30); ret = 1");
    let before = std::time::Instant::now();
    assert_eq!(mutter::source(bus.address()).look(), UNKNOWN);
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
}

#[test]
fn network_manager_tells_what_kind_of_line_it_is() {
    let bus = Bus::start();
    let manager =
        bus.template("networkmanager", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager");
    let mut source = network_manager::source(bus.address());
    let mut look = || source.look();
    let open = Facts { captive_portal: Some(false), ..UNKNOWN };
    assert_eq!(look(), open, "an old one says no more");

    manager.add("Metered", 4u32);
    manager.add("PrimaryConnectionType", "802-11-wireless");
    let home = Facts { metered: Some(false), vpn: Some(false), ..open };
    assert_eq!(look(), home);

    manager.set("Metered", 1u32);
    assert_eq!(look(), Facts { metered: Some(true), ..home.clone() });
    manager.set("Metered", 2u32);
    assert_eq!(look(), home);

    manager.set("Connectivity", 2u32);
    assert_eq!(look(), Facts { captive_portal: Some(true), ..home.clone() });
    manager.add("ConnectivityCheckEnabled", false);
    assert_eq!(look(), Facts { captive_portal: None, ..home.clone() });
    manager.set("ConnectivityCheckEnabled", true);
    manager.set("Connectivity", 4u32);
    assert_eq!(look(), home);

    manager.set("PrimaryConnectionType", "wireguard");
    assert_eq!(look(), Facts { vpn: Some(true), ..home.clone() });
    manager.set("PrimaryConnectionType", "");
    assert_eq!(look(), Facts { vpn: None, ..home });

    drop(manager);
    until(&mut source, |facts| *facts == UNKNOWN);
}

/// One who is logged in, as logind tells of them.
struct Session(Service);

impl Session {
    fn new(bus: &Bus, logind: &Service, id: &str, uid: u32, kind: &str) -> Self {
        logind.mock("AddSession", &(id, "seat0", uid, "somebody", true));
        let path = format!("/org/freedesktop/login1/session/{id}");
        let session = Self(logind.object(bus, &path, "org.freedesktop.login1.Session"));
        session.0.set("Type", kind);
        session
    }

    fn set<'a>(&self, name: &str, value: impl Into<Value<'a>>) {
        self.0.set(name, value);
    }

    fn since(&self, ago: u64) {
        let then = SystemTime::now() - Duration::from_secs(ago);
        let since: u64 = then.duration_since(UNIX_EPOCH).unwrap().as_micros().try_into().unwrap();
        self.set("IdleSinceHint", since);
    }
}

#[test]
fn logind_tells_of_all_who_are_logged_in() {
    let bus = Bus::start();
    let logind = bus.template("logind", "org.freedesktop.login1", "/org/freedesktop/login1");
    let ours = nix::unistd::getuid().as_raw();
    let mut without_display = logind::source(bus.address(), false);
    let mut with_display = logind::source(bus.address(), true);
    let mut idle = || {
        let whole = |source: &mut dyn Source| source.look().idle.map(|idle| idle.as_secs());
        (whole(&mut without_display), whole(&mut with_display))
    };
    assert_eq!(idle(), (Some(0), Some(0)), "nobody is there, since we came");

    let desktop = Session::new(&bus, &logind, "c1", ours, "wayland");
    assert_eq!(idle(), (Some(0), None), "somebody sits at our desktop");
    desktop.set("IdleHint", true);
    desktop.since(3000);
    assert_eq!(idle(), (Some(3000), None));

    let console = Session::new(&bus, &logind, "c2", ours, "tty");
    console.since(500);
    assert_eq!(idle(), (Some(500), Some(500)));
    console.since(4);
    assert_eq!(idle(), (Some(4), Some(4)));
    console.since(4000);

    let guest = Session::new(&bus, &logind, "c3", ours + 1, "x11");
    assert_eq!(idle(), (Some(0), Some(0)), "a guest sits at the machine");
    guest.set("Active", false);
    assert_eq!(idle(), (Some(3000), Some(4000)), "the guest's desktop is in the background");

    let screen = Session::new(&bus, &logind, "c4", ours + 2, "wayland");
    screen.set("Class", "greeter");
    assert_eq!(idle(), (Some(3000), Some(4000)), "a log-in screen is nobody");
}
