//! All sources at their pace: what they cost, and how soon they notice that the owner is back.

use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hebtor_volunteer::sources::linux::battery::Battery;
use hebtor_volunteer::sources::linux::line::Line;
use hebtor_volunteer::sources::linux::{logind, mutter, network_manager, x11};
use hebtor_volunteer::sources::{Source, Watch, of_this_machine};
use nix::sys::resource::{UsageWho, getrusage};

use super::bus::Bus;
use super::child::run;

#[test]
fn each_source_of_this_machine_answers_soon() {
    let sources = of_this_machine(Arc::default());
    assert!(sources.iter().any(|source| source.name() == "line"));
    for mut source in sources {
        let before = Instant::now();
        let facts = source.look();
        eprintln!("{} says {facts:?}", source.name());
        assert!(before.elapsed() < Duration::from_secs(4), "{}: {:?}", source.name(), before.elapsed());
    }
}

#[test]
fn watching_costs_nearly_nothing_and_sees_the_owner_return() {
    let bus = Bus::start();
    let monitor = "org.gnome.Mutter.IdleMonitor";
    let gnome = bus.service(monitor, "/org/gnome/Mutter/IdleMonitor/Core", monitor);
    gnome.answer("GetIdletime", "t", "ret = 1000000");
    let _manager =
        bus.template("networkmanager", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager");
    let logind_mock = bus.template("logind", "org.freedesktop.login1", "/org/freedesktop/login1");
    logind_mock.mock("AddSession", &("c1", "seat0", nix::unistd::getuid().as_raw(), "owner", true));
    let (_server, display) = super::x11::server(None);
    let all: Vec<Box<dyn Source>> = vec![
        Box::new(x11::source(display.clone(), true)),
        Box::new(mutter::source(bus.address())),
        Box::new(logind::source(bus.address(), true)),
        Box::new(network_manager::source(bus.address())),
        Box::new(Line::new(Arc::default())),
        Box::new(Battery::default()),
    ];
    let mut watch = Watch::new(all);
    watch.look(Instant::now());

    let own_time = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        let time =
            |t: nix::sys::time::TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()) as u64);
        time(usage.user_time()) + time(usage.system_time())
    };
    let (before, start) = (own_time(), Instant::now());
    // A longer time gives a truer figure.
    let over = std::env::var("SECONDS_WATCHED").map_or(10, |seconds| seconds.parse().unwrap());
    let over = Duration::from_secs(over);
    while start.elapsed() < over {
        sleep(watch.due().unwrap().saturating_duration_since(Instant::now()));
        watch.look(Instant::now());
    }
    let cost = own_time() - before;
    eprintln!("{cost:?} of processor time in {:?}", start.elapsed());
    assert!(cost < over / 200, "{cost:?}");

    run(Command::new("xdotool").args(["mousemove", "50", "50"]).env("DISPLAY", &display), "xdotool");
    let back = Instant::now();
    while watch.look(Instant::now()).idle.unwrap() > Duration::from_secs(5) {
        sleep(watch.due().unwrap().saturating_duration_since(Instant::now()));
        assert!(back.elapsed() < Duration::from_secs(2), "not noticed in time");
    }
}
