//! Wayland: compositors with ext-idle-notify-v1 (KDE, wlroots, COSMIC, niri) say when input stops and starts.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wayland_client::backend::WaylandError;
use wayland_client::protocol::wl_registry::{self, WlRegistry};
use wayland_client::protocol::wl_seat::WlSeat;
use wayland_client::{Connection, Dispatch, EventQueue, Proxy, QueueHandle, delegate_noop};
use wayland_protocols::ext::idle_notify::v1::client::ext_idle_notification_v1::{
    self, ExtIdleNotificationV1,
};
use wayland_protocols::ext::idle_notify::v1::client::ext_idle_notifier_v1::ExtIdleNotifierV1;

use super::reopen::{Broken, Open, Reopened};
use crate::sources::{Facts, Source};

/// The compositor speaks up after this time without input. Below it, idle time is told as zero.
const STOPPED_AFTER: Duration = Duration::from_secs(5);

/// Listens to the compositor at this socket.
///
/// A program that keeps the screen awake, say for a film, counts as input: that is how a compositor with
/// this protocol answers, and it stands in for the full-screen windows that nobody shows us under Wayland.
pub fn source(socket: PathBuf) -> impl Source {
    Reopened::new("Wayland", Duration::from_secs(1), move || {
        let connection = Connection::from_socket(UnixStream::connect(&socket)?)?;
        let queue = connection.new_event_queue();
        connection.display().get_registry(&queue.handle(), ());
        Ok(Compositor { queue, heard: Heard::default() })
    })
}

struct Compositor {
    queue: EventQueue<Heard>,
    heard: Heard,
}

/// What the compositor has and said.
#[derive(Default)]
struct Heard {
    seat: Option<WlSeat>,
    notifier: Option<ExtIdleNotifierV1>,
    notification: Option<ExtIdleNotificationV1>,
    stopped: Option<Instant>,
}

impl Open for Compositor {
    /// Reads what has come, without waiting for more.
    fn facts(&mut self) -> Result<Facts, Broken> {
        self.queue.flush()?;
        if let Some(guard) = self.queue.prepare_read() {
            match guard.read() {
                Err(WaylandError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                other => drop(other?),
            }
        }
        self.queue.dispatch_pending(&mut self.heard)?;
        self.heard.subscribe(&self.queue.handle());
        self.queue.flush()?;
        Ok(Facts { idle: self.heard.idle(Instant::now()), ..Facts::default() })
    }
}

impl Heard {
    fn subscribe(&mut self, queue: &QueueHandle<Self>) {
        if let (Some(seat), Some(notifier), None) = (&self.seat, &self.notifier, &self.notification) {
            let after = STOPPED_AFTER.as_millis().try_into().unwrap_or(u32::MAX);
            self.notification = Some(notifier.get_idle_notification(after, seat, queue, ()));
        }
    }

    fn idle(&self, now: Instant) -> Option<Duration> {
        self.notification.as_ref()?;
        Some(self.stopped.map_or(Duration::ZERO, |then| STOPPED_AFTER + now.duration_since(then)))
    }
}

impl Dispatch<WlRegistry, ()> for Heard {
    fn event(
        heard: &mut Self,
        registry: &WlRegistry,
        event: wl_registry::Event,
        _: &(),
        _: &Connection,
        queue: &QueueHandle<Self>,
    ) {
        let wl_registry::Event::Global { name, interface, .. } = event else { return };
        if interface == WlSeat::interface().name && heard.seat.is_none() {
            heard.seat = Some(registry.bind(name, 1, queue, ()));
        } else if interface == ExtIdleNotifierV1::interface().name {
            heard.notifier = Some(registry.bind(name, 1, queue, ()));
        }
    }
}

impl Dispatch<ExtIdleNotificationV1, ()> for Heard {
    fn event(
        heard: &mut Self,
        _: &ExtIdleNotificationV1,
        event: ext_idle_notification_v1::Event,
        _: &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        match event {
            ext_idle_notification_v1::Event::Idled => heard.stopped = Some(Instant::now()),
            ext_idle_notification_v1::Event::Resumed => heard.stopped = None,
            _ => {}
        }
    }
}

delegate_noop!(Heard: ignore WlSeat);
delegate_noop!(Heard: ExtIdleNotifierV1);
