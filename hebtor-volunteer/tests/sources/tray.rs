//! The icon in the tray, as a panel sees it.

use std::collections::HashMap;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use zbus::Connection;
use zbus::zvariant::{OwnedValue, Value};

use super::bus::Bus;
use super::child::Child;

/// How long it may take to be seen, and to follow.
const SOON: Duration = Duration::from_secs(15);

/// What keeps the list of icons; panels show them.
struct Watcher(Sender<String>);

#[zbus::interface(name = "org.kde.StatusNotifierWatcher")]
impl Watcher {
    fn register_status_notifier_item(&self, item: String) {
        self.0.send(item).unwrap();
    }

    #[zbus(property)]
    fn is_status_notifier_host_registered(&self) -> bool {
        true
    }
}

/// A menu: id, properties, items of the same kind.
type Menu = (i32, HashMap<String, OwnedValue>, Vec<OwnedValue>);

/// A picture: width, height, ARGB.
type Icon = (i32, i32, Vec<u8>);

/// Name of an icon, icons, title, text.
type ToolTip = (String, Vec<Icon>, String, String);

/// A panel with our icon in it.
struct Panel {
    connection: Connection,
    item: String,
    runtime: Runtime,
}

impl Panel {
    /// Starts one on a bus where we are already, and waits for our icon.
    fn start(bus: &Bus) -> Self {
        // On several threads: it answers while we wait.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, items) = channel();
        let connection = zbus::connection::Builder::address(bus.at().as_str()).unwrap();
        let connection = connection.serve_at("/StatusNotifierWatcher", Watcher(sender)).unwrap();
        let connection = connection.name("org.kde.StatusNotifierWatcher").unwrap();
        let connection = runtime.block_on(connection.build()).unwrap();
        let item = items.recv_timeout(SOON).expect("no icon");
        Self { connection, item, runtime }
    }

    fn property(&self, name: &str) -> Value<'static> {
        let (to, get) = (Some(self.item.as_str()), Some("org.freedesktop.DBus.Properties"));
        let body = ("org.kde.StatusNotifierItem", name);
        let call = self.connection.call_method(to, "/StatusNotifierItem", get, "Get", &body);
        let reply = self.runtime.block_on(call).unwrap();
        Value::from(reply.body().deserialize::<OwnedValue>().unwrap())
    }

    /// Waits until the icon says this.
    fn until(&self, text: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let (_, _, _, said) = ToolTip::try_from(self.property("ToolTip")).unwrap();
            if said == text {
                return;
            }
            assert!(Instant::now() < deadline, "it says {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Chooses this in the icon's menu.
    fn choose(&self, label: &str) {
        let menu = Some("com.canonical.dbusmenu");
        let layout = (0_i32, -1_i32, Vec::<&str>::new());
        let call =
            self.connection.call_method(Some(self.item.as_str()), "/MenuBar", menu, "GetLayout", &layout);
        let reply = self.runtime.block_on(call).unwrap();
        let (_revision, (_, _, items)): (u32, Menu) = reply.body().deserialize().unwrap();
        let items = items.into_iter().map(|item| Menu::try_from(Value::from(item)).unwrap());
        let is_it = |(_, properties, _): &Menu| {
            properties.get("label").is_some_and(|is| <&str>::try_from(is).is_ok_and(|is| is == label))
        };
        let (id, ..) = items.into_iter().find(is_it).expect("no such item");
        let event = (id, "clicked", Value::from(0_i32), 0_u32);
        let call = self.connection.call_method(Some(self.item.as_str()), "/MenuBar", menu, "Event", &event);
        self.runtime.block_on(call).unwrap();
    }
}

#[test]
fn the_tray_tells_the_state_and_switches() {
    let (bus, dir) = (Bus::start(), tempfile::tempdir().unwrap());
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("facts.json"), r#"{"idle":3600,"on_battery":true}"#).unwrap();
    let consent = r#"{"consent":{"at":"2026-11-27T00:00:00Z","version":1}}"#;
    std::fs::write(path("settings.json"), consent).unwrap();
    let mut app = Command::new(env!("CARGO_BIN_EXE_hebtor-volunteer"));
    app.arg("--hidden").args(["--facts", &path("facts.json"), "--set", "page=127.0.0.1:0"]);
    app.arg("--set").arg(format!("state_dir={}", dir.path().display()));
    app.env("DBUS_SESSION_BUS_ADDRESS", bus.at()).env("XDG_CONFIG_HOME", dir.path());
    let mut app = Child::start(&mut app, "hebtor-volunteer");

    // Who starts at log-in is often there before the panel.
    std::thread::sleep(Duration::from_secs(1));
    let panel = Panel::start(&bus);
    panel.until("paused: on battery");
    let icons = Vec::<Icon>::try_from(panel.property("IconPixmap")).unwrap();
    let (width, height, pixels) = &icons[0];
    let middle = usize::try_from((height / 2 * width + width / 2) * 4).unwrap();
    assert_eq!(pixels[middle..][..4], [255, 0x80, 0x88, 0x92], "grey");
    panel.choose("Off");
    panel.until("off: you switched it off");
    assert!(std::fs::read_to_string(path("settings.json")).unwrap().contains(r#""switch": "off""#));
    panel.choose("End this app");
    app.ends_well(SOON);
}
