//! A real X server without a window manager.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hebtor_volunteer::sources::linux::x11;
use hebtor_volunteer::sources::{Facts, Source};
use nix::sys::signal::Signal;
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{AtomEnum, ConnectionExt as _, CreateWindowAux, PropMode, Window, WindowClass};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;

use super::child::{Child, run, until};

/// Starts a server at a display that is free, or at this one. It would start anew with each client's
/// end, and forget when input was last, without `-noreset`.
pub fn server(display: Option<&str>) -> (Child, String) {
    let mut xvfb = Command::new("Xvfb");
    xvfb.args(display).args(["-displayfd", "1", "-noreset", "-nolisten", "tcp"]).stderr(Stdio::null());
    let (server, number) = Child::that_prints(&mut xvfb, "xvfb");
    (server, format!(":{number}"))
}

fn move_pointer(display: &str, to: &str) {
    run(Command::new("xdotool").args(["mousemove", to, to]).env("DISPLAY", display), "xdotool");
}

#[test]
fn idle_time_grows_until_the_pointer_moves() {
    let (_server, display) = server(None);
    let mut source = x11::source(display.clone(), true);
    let mut idle = || source.look().idle.unwrap();

    move_pointer(&display, "100");
    assert!(idle() < Duration::from_secs(1));
    sleep(Duration::from_millis(2500));
    assert!(idle() >= Duration::from_secs(2));
    move_pointer(&display, "200");
    assert!(idle() < Duration::from_secs(1));
}

#[test]
fn a_full_screen_window_in_front_is_seen() {
    let (_server, display) = server(None);
    let desk = Desk::at(&display);
    let mut source = x11::source(display.clone(), true);
    let mut full_screen = || source.look().full_screen;

    assert_eq!(full_screen(), None, "nobody says which window is in front");
    let (film, mail) = (desk.window(), desk.window());
    desk.put_in_front(mail);
    assert_eq!(full_screen(), Some(false));
    desk.cover_screen(film);
    assert_eq!(full_screen(), Some(false), "it is behind");
    desk.put_in_front(film);
    assert_eq!(full_screen(), Some(true));
    desk.close(film);
    assert_eq!(full_screen(), Some(false), "a closed window is named still");
    desk.put_in_front(x11rb::NONE);
    assert_eq!(full_screen(), Some(false));
}

#[test]
fn within_wayland_only_a_full_screen_x_window_means_something() {
    let (_server, display) = server(None);
    let desk = Desk::at(&display);
    let mut source = x11::source(display.clone(), false);
    let film = desk.window();
    desk.put_in_front(film);
    assert_eq!(source.look(), Facts::default());
    desk.cover_screen(film);
    assert_eq!(source.look(), Facts { full_screen: Some(true), ..Facts::default() });
}

#[test]
fn a_server_that_comes_again_is_found_again() {
    let (first, display) = server(None);
    let mut source = x11::source(display.clone(), true);
    assert!(source.look().idle.is_some());
    drop(first);
    assert_eq!(source.look(), Facts::default());
    let _second = server(Some(&display));
    until(&mut source, |facts| facts.idle.is_some());
}

#[test]
fn a_server_that_hangs_holds_up_nobody() {
    let (server, display) = server(None);
    let mut source = x11::source(display, true);
    assert!(source.look().idle.is_some());
    server.signal(Signal::SIGSTOP);
    let before = Instant::now();
    assert_eq!(source.look(), Facts::default());
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    server.signal(Signal::SIGCONT);
    until(&mut source, |facts| facts.idle.is_some());
}

#[test]
fn another_machines_display_is_not_asked() {
    assert_eq!(x11::source("elsewhere.invalid:0".into(), true).look(), Facts::default());
}

/// Plays the window manager.
struct Desk {
    x: RustConnection,
    root: Window,
}

impl Desk {
    fn at(display: &str) -> Self {
        let (x, screen) = RustConnection::connect(Some(display)).unwrap();
        let root = x.setup().roots[screen].root;
        Self { x, root }
    }

    fn window(&self) -> Window {
        let window = self.x.generate_id().unwrap();
        let (class, aux) = (WindowClass::INPUT_OUTPUT, CreateWindowAux::new());
        let made = self.x.create_window(0, window, self.root, 0, 0, 100, 100, 0, class, 0, &aux);
        made.unwrap().check().unwrap();
        window
    }

    fn put_in_front(&self, window: Window) {
        self.set(self.root, "_NET_ACTIVE_WINDOW", AtomEnum::WINDOW, window);
    }

    fn cover_screen(&self, window: Window) {
        self.set(window, "_NET_WM_STATE", AtomEnum::ATOM, self.atom("_NET_WM_STATE_FULLSCREEN"));
    }

    fn close(&self, window: Window) {
        self.x.destroy_window(window).unwrap().check().unwrap();
    }

    fn set(&self, of: Window, name: &str, kind: AtomEnum, value: u32) {
        let set = self.x.change_property32(PropMode::REPLACE, of, self.atom(name), kind, &[value]);
        set.unwrap().check().unwrap();
    }

    fn atom(&self, name: &str) -> u32 {
        self.x.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom
    }
}
