//! A compositor that has a seat and ext-idle-notify-v1, and nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use hebtor_volunteer::sources::linux::wayland;
use hebtor_volunteer::sources::{Facts, Source};
use wayland_protocols::ext::idle_notify::v1::server::ext_idle_notification_v1::{
    self, ExtIdleNotificationV1,
};
use wayland_protocols::ext::idle_notify::v1::server::ext_idle_notifier_v1::{self, ExtIdleNotifierV1};
use wayland_server::protocol::wl_seat::{self, WlSeat};
use wayland_server::{
    Client, DataInit, Dispatch, Display, DisplayHandle, GlobalDispatch, ListeningSocket, New,
};

use super::child::until;

#[test]
fn a_compositor_tells_when_input_stops_and_starts() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(folder.path(), true);
    let mut source = wayland::source(compositor.socket.clone());
    until(&mut source, |facts| facts.idle == Some(Duration::ZERO));

    compositor.say(Say::Idled);
    let after = until(&mut source, |facts| facts.idle > Some(Duration::ZERO)).idle.unwrap();
    assert!(after >= Duration::from_secs(5), "{after:?}");
    sleep(Duration::from_millis(1100));
    assert!(source.look().idle.unwrap() > after + Duration::from_secs(1));

    compositor.say(Say::Resumed);
    until(&mut source, |facts| facts.idle == Some(Duration::ZERO));
}

#[test]
fn a_compositor_that_is_gone_or_back_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let first = Compositor::start(folder.path(), true);
    let mut source = wayland::source(first.socket.clone());
    until(&mut source, |facts| facts.idle.is_some());
    drop(first);
    until(&mut source, |facts| facts.idle.is_none());
    let _second = Compositor::start(folder.path(), true);
    until(&mut source, |facts| facts.idle.is_some());
}

#[test]
fn a_compositor_without_the_protocol_tells_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let compositor = Compositor::start(folder.path(), false);
    let mut source = wayland::source(compositor.socket.clone());
    for _ in 0..10 {
        assert_eq!(source.look(), Facts::default());
        sleep(Duration::from_millis(20));
    }
}

enum Say {
    Idled,
    Resumed,
}

/// Runs on a thread until dropped.
struct Compositor {
    socket: PathBuf,
    say: Option<Sender<Say>>,
    thread: Option<JoinHandle<()>>,
}

impl Compositor {
    fn start(folder: &Path, has_protocol: bool) -> Self {
        let socket = folder.join("wayland");
        let listener = ListeningSocket::bind_absolute(socket.clone()).unwrap();
        let (say, said) = channel();
        let thread = spawn(move || {
            let mut display = Display::<Screen>::new().unwrap();
            let mut handle = display.handle();
            handle.create_global::<Screen, WlSeat, ()>(8, ());
            if has_protocol {
                handle.create_global::<Screen, ExtIdleNotifierV1, ()>(1, ());
            }
            let mut screen = Screen::default();
            loop {
                if let Some(stream) = listener.accept().unwrap() {
                    handle.insert_client(stream, Arc::new(())).unwrap();
                }
                display.dispatch_clients(&mut screen).unwrap();
                match said.try_recv() {
                    Ok(Say::Idled) => screen.0.iter().for_each(ExtIdleNotificationV1::idled),
                    Ok(Say::Resumed) => screen.0.iter().for_each(ExtIdleNotificationV1::resumed),
                    Err(TryRecvError::Empty) => sleep(Duration::from_millis(5)),
                    Err(TryRecvError::Disconnected) => return,
                }
                display.flush_clients().unwrap();
            }
        });
        Self { socket, say: Some(say), thread: Some(thread) }
    }

    fn say(&self, what: Say) {
        self.say.as_ref().unwrap().send(what).unwrap();
    }
}

impl Drop for Compositor {
    fn drop(&mut self) {
        self.say = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// Those who want to know.
#[derive(Default)]
struct Screen(Vec<ExtIdleNotificationV1>);

impl GlobalDispatch<WlSeat, ()> for Screen {
    fn bind(
        _: &mut Self,
        _: &DisplayHandle,
        _: &Client,
        seat: New<WlSeat>,
        (): &(),
        init: &mut DataInit<'_, Self>,
    ) {
        init.init(seat, ()).capabilities(wl_seat::Capability::Pointer);
    }
}

impl GlobalDispatch<ExtIdleNotifierV1, ()> for Screen {
    fn bind(
        _: &mut Self,
        _: &DisplayHandle,
        _: &Client,
        notifier: New<ExtIdleNotifierV1>,
        (): &(),
        init: &mut DataInit<'_, Self>,
    ) {
        init.init(notifier, ());
    }
}

impl Dispatch<ExtIdleNotifierV1, ()> for Screen {
    fn request(
        screen: &mut Self,
        _: &Client,
        _: &ExtIdleNotifierV1,
        request: ext_idle_notifier_v1::Request,
        (): &(),
        _: &DisplayHandle,
        init: &mut DataInit<'_, Self>,
    ) {
        if let ext_idle_notifier_v1::Request::GetIdleNotification { id, timeout, .. } = request {
            assert_eq!(timeout, 5000);
            screen.0.push(init.init(id, ()));
        }
    }
}

impl Dispatch<WlSeat, ()> for Screen {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &WlSeat,
        _: wl_seat::Request,
        (): &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }
}

impl Dispatch<ExtIdleNotificationV1, ()> for Screen {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &ExtIdleNotificationV1,
        _: ext_idle_notification_v1::Request,
        (): &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }
}
