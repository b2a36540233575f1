//! A private bus, and services on it that answer what a test wants.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hebtor_volunteer::sources::linux::bus::Address;
use serde::Serialize;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use zbus::zvariant::{DynamicType, Value};

use super::child::{Child, run};

/// Debian's, for that is where the package with dbusmock puts it.
const PYTHON: &str = "/usr/bin/python3";

/// A bus; ended when dropped. It can be started again at the same address.
pub struct Bus {
    folder: TempDir,
    daemon: Option<Child>,
}

impl Bus {
    pub fn start() -> Self {
        let mut bus = Self { folder: tempfile::tempdir().unwrap(), daemon: None };
        bus.restart();
        bus
    }

    pub fn at(&self) -> String {
        format!("unix:path={}", self.folder.path().join("bus").display())
    }

    pub fn address(&self) -> Address {
        Address::At(self.at())
    }

    pub fn restart(&mut self) {
        self.stop();
        let mut daemon = Command::new("dbus-daemon");
        daemon.args(["--session", "--nofork", "--nopidfile", "--print-address=1", "--address", &self.at()]);
        daemon.stderr(Stdio::null());
        self.daemon = Some(Child::that_prints(&mut daemon, "dbus-daemon").0);
    }

    pub fn stop(&mut self) {
        self.daemon = None;
        let socket = self.folder.path().join("bus");
        if Path::exists(&socket) {
            std::fs::remove_file(socket).unwrap();
        }
    }

    /// Starts a service with one object that has nothing yet.
    pub fn service(&self, name: &'static str, path: &'static str, interface: &'static str) -> Service {
        self.mock(&[name, path, interface], Service::new(self, name, path, interface))
    }

    /// Starts a service as dbusmock knows it.
    pub fn template(&self, template: &str, name: &'static str, path: &'static str) -> Service {
        self.mock(&["--template", template], Service::new(self, name, path, name))
    }

    fn mock(&self, args: &[&str], mut service: Service) -> Service {
        let mut has = Command::new(PYTHON);
        run(has.args(["-c", "import dbusmock"]), "python3-dbusmock");
        let mut mock = Command::new(PYTHON);
        mock.args(["-m", "dbusmock", "--system"]).args(args).env("DBUS_SYSTEM_BUS_ADDRESS", self.at());
        mock.stdout(Stdio::null());
        service.mock = Some(Child::start(&mut mock, "python3-dbusmock"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while service.call("org.freedesktop.DBus.Introspectable", "Introspect", &()).is_err() {
            assert!(Instant::now() < deadline, "{} does not come up", service.name);
            std::thread::sleep(Duration::from_millis(50));
        }
        service
    }
}

/// A service; ended when dropped.
pub struct Service {
    mock: Option<Child>,
    name: &'static str,
    path: String,
    interface: String,
    connection: zbus::Connection,
    runtime: Runtime,
}

impl Service {
    fn new(bus: &Bus, name: &'static str, path: &str, interface: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let connect = zbus::connection::Builder::address(bus.at().as_str()).unwrap().build();
        let connection = runtime.block_on(connect).unwrap();
        Self { mock: None, name, path: path.into(), interface: interface.into(), connection, runtime }
    }

    /// Another object of the same service, which ends with the first.
    pub fn object(&self, bus: &Bus, path: &str, interface: &str) -> Self {
        Self::new(bus, self.name, path, interface)
    }

    fn call(&self, interface: &str, method: &str, body: &(impl Serialize + DynamicType)) -> zbus::Result<()> {
        let path = self.path.as_str();
        let call = self.connection.call_method(Some(self.name), path, Some(interface), method, body);
        self.runtime.block_on(call).map(drop)
    }

    /// Tells the mock what to be.
    pub fn mock(&self, method: &str, body: &(impl Serialize + DynamicType)) {
        self.call("org.freedesktop.DBus.Mock", method, body).unwrap();
    }

    /// Makes a method answer this Python.
    pub fn answer(&self, method: &str, signature: &str, code: &str) {
        self.mock("AddMethod", &(self.interface.as_str(), method, "", signature, code));
    }

    /// Gives it a property that it has not yet.
    pub fn add<'a>(&self, name: &str, value: impl Into<Value<'a>>) {
        self.mock("AddProperty", &(self.interface.as_str(), name, value.into()));
    }

    /// Changes a property.
    pub fn set<'a>(&self, name: &str, value: impl Into<Value<'a>>) {
        let properties = HashMap::from([(name, value.into())]);
        self.mock("UpdateProperties", &(self.interface.as_str(), properties));
    }
}
