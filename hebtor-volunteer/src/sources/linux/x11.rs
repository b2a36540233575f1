//! X: time since the last input, and whether the window in front covers the screen.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use x11rb::connection::{Connection, RequestConnection};
use x11rb::errors::ReplyError;
use x11rb::protocol::ErrorKind as XError;
use x11rb::protocol::screensaver::ConnectionExt as _;
use x11rb::protocol::xproto::{Atom, AtomEnum, ConnectionExt as _, Window};
use x11rb::reexports::x11rb_protocol::parse_display::{ConnectAddress, parse_display};
use x11rb::reexports::x11rb_protocol::xauth::get_auth;
use x11rb::rust_connection::{DefaultStream, PollMode, RustConnection, Stream};
use x11rb::utils::RawFdContainer;

use super::reopen::{Broken, Open, Reopened};
use crate::sources::{Facts, Source};

/// Milliseconds that the server may take for one answer.
const PATIENCE: u16 = 2000;

/// Asks the X server of this display: `:0`. One that is reached over TCP is another machine's, and is not
/// asked. `sees_all_input`: false if it serves X programs within a Wayland session.
pub fn source(display: String, sees_all_input: bool) -> impl Source {
    Reopened::new("X11", Duration::from_secs(1), move || Display::open(&display, sees_all_input))
}

struct Display {
    x: RustConnection<Patient>,
    root: Window,
    sees_all_input: bool,
    active_window: Atom,
    state: Atom,
    full_screen: Atom,
}

impl Display {
    fn open(name: &str, sees_all_input: bool) -> Result<Self, Broken> {
        let display = parse_display(Some(name))?;
        let screen = usize::from(display.screen);
        let stream = display.connect_instruction().find_map(|address| match address {
            ConnectAddress::Socket(path) => UnixStream::connect(path).ok(),
            _ => None,
        });
        let stream = stream.ok_or("no X server of this machine answers")?;
        let to_wait = stream.try_clone()?;
        let (stream, (family, address)) = DefaultStream::from_unix_stream(stream)?;
        let (name, data) = get_auth(family, &address, display.display).ok().flatten().unwrap_or_default();
        let stream = Patient { stream, to_wait };
        let x = RustConnection::connect_to_stream_with_auth_info(stream, screen, name, data)?;

        let root = x.setup().roots.get(screen).ok_or("no such screen")?.root;
        let atom = |name: &str| Ok::<_, Broken>(x.intern_atom(false, name.as_bytes())?.reply()?.atom);
        let (active_window, state, full_screen) =
            (atom("_NET_ACTIVE_WINDOW")?, atom("_NET_WM_STATE")?, atom("_NET_WM_STATE_FULLSCREEN")?);
        let sees_all_input = sees_all_input && x.extension_information("XWAYLAND")?.is_none();
        Ok(Self { x, root, sees_all_input, active_window, state, full_screen })
    }

    fn idle(&self) -> Result<Duration, Broken> {
        let told = self.x.screensaver_query_info(self.root)?.reply()?;
        Ok(Duration::from_millis(told.ms_since_user_input.into()))
    }

    /// `None` if no window manager says which window is in front.
    fn full_screen(&self) -> Result<Option<bool>, Broken> {
        let front = self.property(self.root, self.active_window, AtomEnum::WINDOW)?;
        let Some(&front) = front.first() else { return Ok(None) };
        if front == x11rb::NONE {
            return Ok(Some(false));
        }
        match self.property(front, self.state, AtomEnum::ATOM) {
            Ok(states) => Ok(Some(states.contains(&self.full_screen))),
            // Closed meanwhile.
            Err(ReplyError::X11Error(error)) if error.error_kind == XError::Window => Ok(Some(false)),
            Err(error) => Err(error.into()),
        }
    }

    fn property(&self, of: Window, name: Atom, kind: AtomEnum) -> Result<Vec<u32>, ReplyError> {
        const LONGEST: u32 = 64;
        let told = self.x.get_property(false, of, name, kind, 0, LONGEST)?.reply()?;
        Ok(told.value32().into_iter().flatten().collect())
    }
}

impl Open for Display {
    fn facts(&mut self) -> Result<Facts, Broken> {
        let idle = self.sees_all_input.then(|| self.idle()).transpose()?;
        // Within a Wayland session it knows of X windows only: a "no" means nothing.
        let full_screen = self.full_screen()?.filter(|full| self.sees_all_input || *full);
        while self.x.poll_for_event()?.is_some() {}
        Ok(Facts { idle, full_screen, ..Facts::default() })
    }
}

/// A stream that gives up on a server that hangs.
struct Patient {
    stream: DefaultStream,
    to_wait: UnixStream,
}

impl Stream for Patient {
    fn poll(&self, mode: PollMode) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, mode.readable());
        flags.set(PollFlags::POLLOUT, mode.writable());
        match poll(&mut [PollFd::new(self.to_wait.as_fd(), flags)], PollTimeout::from(PATIENCE)) {
            Ok(0) => Err(ErrorKind::TimedOut.into()),
            // Its callers try again.
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, buf: &mut [u8], fds: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.stream.read(buf, fds)
    }

    fn write(&self, buf: &[u8], fds: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.stream.write(buf, fds)
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>], fds: &mut Vec<RawFdContainer>) -> io::Result<usize> {
        self.stream.write_vectored(bufs, fds)
    }
}
