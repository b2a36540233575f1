//! C tor's control port (control-spec), as far as attaching needs it. No other role talks to one, and the crates that do
//! have not been kept (docs/adr/0019).

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use data_encoding::{HEXLOWER_PERMISSIVE, HEXUPPER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How long tor may take to answer, to the last line.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes, and longest line of it.
const MAX_ANSWER: usize = 1 << 24;
const MAX_LINE: usize = 1 << 20;
/// Most events that wait to be heard: more than a tor has circuits and streams.
const MAX_EVENTS: usize = 1 << 16;
/// What is authenticated with the cookie (control-spec, AUTHCHALLENGE), and how long that is.
const SERVER_TO_CONTROLLER: &[u8] = b"Tor safe cookie authentication server-to-controller hash";
const CONTROLLER_TO_SERVER: &[u8] = b"Tor safe cookie authentication controller-to-server hash";
const COOKIE_LEN: usize = 32;
/// Folders that tor's user owns where a distribution brought tor. Who owns them, root said.
const TORS_OWN: [&str; 2] = ["/run/tor", "/var/lib/tor"];

/// Where a tor listens for controllers: `127.0.0.1:9051`, or the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `ControlPort`, on this machine: what is said there is not encrypted.
    Tcp(SocketAddr),
    /// `ControlSocket`.
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr =
            text.parse().map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor the path of a socket"))?;
        if !address.ip().is_loopback() {
            return Err(format!("{address} is not on this machine, and a control port is not encrypted"));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Place {
    /// Is it a socket that only tor, root or we can have made?
    fn is_guarded(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        let folder = path.parent().and_then(|folder| fs::metadata(folder).ok());
        folder.is_some_and(|folder| is_believed(&folder) && folder.mode() & 0o002 == 0)
    }
}

/// Does it belong to root, to us, or to tor's user?
fn is_believed(meta: &Metadata) -> bool {
    let tors = TORS_OWN.iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.uid());
    [0, nix::unistd::geteuid().as_raw()].into_iter().chain(tors).any(|uid| uid == meta.uid())
}

/// Who says that a tor listens at a place.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The person did, and may have given its password.
    Named(Option<&'a str>),
    /// Nobody: it is where tors often are. Everybody on this machine could listen there, so it has to show that it is one,
    /// and is told no password.
    Found,
}

/// Why a tor can't be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there, or not to us.
    #[error("can't connect to the control port {place}")]
    Connect {
        /// Where it should be.
        place: Place,
        /// What the system says.
        source: io::Error,
    },
    /// It is gone.
    #[error("the control port broke off")]
    Broken(#[source] io::Error),
    /// It does not speak as the specification says.
    #[error("the control port's answer makes no sense: {0}")]
    Malformed(&'static str),
    /// Tor wants to know who we are, and we can't show it.
    #[error("tor does not let us in: {0}")]
    Authentication(String),
    /// Tor said no.
    #[error("tor refused {command}: {code} {text}")]
    Refused {
        /// The first word of what was asked.
        command: String,
        /// The code (control-spec, "Replies").
        code: u16,
        /// Tor's words.
        text: String,
    },
}

impl ControlError {
    /// What to try where no tor is found.
    pub const HINT_CONNECT: &str = "does tor run, and has its torrc `ControlPort 9051`? Tor Browser's is 127.0.0.1:9151, Debian's /run/tor/control";

    /// Is it that no such tor runs any more?
    pub fn is_gone(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connect { .. } => Self::HINT_CONNECT,
            Self::Broken(_) => "has tor ended? a tor that is started anew remembers nothing of us",
            Self::Authentication(_) => {
                "`CookieAuthentication 1` in torrc, and be a user who may read the cookie; or name it by --control, with --password-file if it has a password"
            }
            Self::Malformed(_) | Self::Refused { .. } => "is a filter before the control port, as on Tails?",
        }
    }
}

/// A connection, either kind.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn wait_at_most(&self, limit: Duration) -> io::Result<()> {
        let limit = Some(limit.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(limit),
            Self::Unix(stream) => stream.set_read_timeout(limit),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }
}

/// A connection to a control port, authenticated.
pub struct Control {
    socket: Socket,
    /// What was read and is no whole line yet.
    unread: Vec<u8>,
    events: VecDeque<String>,
    version: String,
}

impl Control {
    /// Connects and authenticates: by the cookie, or by whatever else it is trusted with.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn connect(place: &Place, trust: Trust<'_>) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Connect { place: place.clone(), source };
        let socket = match place {
            Place::Tcp(address) => {
                Socket::Tcp(TcpStream::connect_timeout(address, PATIENCE).map_err(failed)?)
            }
            Place::Unix(path) => Socket::Unix(UnixStream::connect(path).map_err(failed)?),
        };
        let mut control =
            Self { socket, unread: Vec::new(), events: VecDeque::new(), version: String::new() };
        let info = control.ask("PROTOCOLINFO 1")?;
        control.authenticate(&info, place, trust)?;
        control.version = control.get("version")?;
        Ok(control)
    }

    /// Which tor it is, such as `0.4.9.11`.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn authenticate(&mut self, info: &[String], place: &Place, trust: Trust<'_>) -> Result<(), ControlError> {
        let auth = info.iter().find_map(|line| line.strip_prefix("AUTH METHODS=")).unwrap_or_default();
        let (methods, rest) = auth.split_once(' ').unwrap_or((auth, ""));
        let has = |method: &str| methods.split(',').any(|known| known == method);
        let cookie = rest.strip_prefix("COOKIEFILE=").and_then(unquoted).filter(|_| has("SAFECOOKIE"));
        let proof = match (trust, cookie) {
            (Trust::Named(_), _) if has("NULL") => String::new(),
            (Trust::Named(Some(password)), _) if has("HASHEDPASSWORD") => format!(" {}", quoted(password)),
            (Trust::Found, _) if has("NULL") && place.is_guarded() => String::new(),
            (_, Some(path)) => format!(" {}", self.safe_cookie(&cookie_at(Path::new(&path), trust)?)?),
            (Trust::Found, None) => {
                let error = format!("nothing shows that who listens at {place} is tor ({methods})");
                return Err(ControlError::Authentication(error));
            }
            _ => {
                let error = format!("of its ways ({methods}) we have none");
                return Err(ControlError::Authentication(error));
            }
        };
        self.ask(&format!("AUTHENTICATE{proof}")).map(drop).map_err(|error| match error {
            ControlError::Refused { text, .. } => ControlError::Authentication(text),
            other => other,
        })
    }

    /// Both sides show that they know the cookie, and neither says it.
    fn safe_cookie(&mut self, cookie: &[u8; COOKIE_LEN]) -> Result<String, ControlError> {
        let nonce: [u8; 32] = rand::random();
        let answer = self.ask(&format!("AUTHCHALLENGE SAFECOOKIE {}", HEXUPPER.encode(&nonce)))?;
        let field = |name: &str| {
            let text =
                answer.first()?.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
            HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
        };
        let (Some(theirs), Some(shown)) = (field("SERVERNONCE"), field("SERVERHASH")) else {
            return Err(ControlError::Malformed("AUTHCHALLENGE"));
        };
        let mac = |key: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| ControlError::Malformed("a key"))?;
            Ok::<_, ControlError>(mac.chain_update(cookie).chain_update(nonce).chain_update(&theirs))
        };
        mac(SERVER_TO_CONTROLLER)?.verify_slice(&shown).map_err(|_| {
            ControlError::Authentication("who listens there does not know tor's cookie".into())
        })?;
        Ok(HEXUPPER.encode(&mac(CONTROLLER_TO_SERVER)?.finalize().into_bytes()))
    }

    /// Gives one command: the lines of the answer, without their codes. Data is behind its line, after a line feed.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn ask(&mut self, command: &str) -> Result<Vec<String>, ControlError> {
        if command.contains(['\r', '\n']) {
            return Err(ControlError::Malformed("a command of two lines"));
        }
        self.send(command, &format!("{command}\r\n"))
    }

    /// Gives a command that tor may refuse: whether it did as told.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn attempt(&mut self, command: &str) -> Result<bool, ControlError> {
        match self.ask(command) {
            Ok(_) => Ok(true),
            Err(ControlError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives a command with data behind it, which may be anything.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn ask_with(&mut self, command: &str, data: &str) -> Result<Vec<String>, ControlError> {
        let mut text = format!("+{command}\r\n");
        for line in data.lines() {
            // A dot alone would end the data, and what follows would be commands.
            let dot = if line.starts_with('.') { "." } else { "" };
            text += &format!("{dot}{}\r\n", line.replace('\r', ""));
        }
        self.send(command, &format!("{text}.\r\n"))
    }

    /// One value of GETINFO.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn get(&mut self, key: &str) -> Result<String, ControlError> {
        let answer = self.ask(&format!("GETINFO {key}"))?;
        let value =
            answer.into_iter().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned()));
        let value = value.ok_or(ControlError::Malformed("GETINFO"))?;
        Ok(value.strip_prefix('\n').map(str::to_owned).unwrap_or(value))
    }

    /// All values of an option; none if it has none.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn option(&mut self, name: &str) -> Result<Vec<String>, ControlError> {
        let answer = self.ask(&format!("GETCONF {name}"))?;
        Ok(answer
            .iter()
            .filter_map(|line| {
                let (key, value) = line.split_once('=')?;
                key.eq_ignore_ascii_case(name).then(|| unquoted(value).unwrap_or_else(|| value.to_owned()))
            })
            .collect())
    }

    /// Sets an option.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ControlError> {
        self.ask(&format!("SETCONF {name}={}", quoted(value))).map(drop)
    }

    /// The next event that was asked for with SETEVENTS, without its code, if one comes in this time.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn event(&mut self, limit: Duration) -> Result<Option<String>, ControlError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let Some(first) = self.line(Instant::now() + limit)? else { return Ok(None) };
        match self.reply(first, Instant::now() + PATIENCE)? {
            (650, lines) => Ok(Some(lines.join("\n"))),
            _ => Err(ControlError::Malformed("an answer to nothing")),
        }
    }

    fn send(&mut self, command: &str, text: &str) -> Result<Vec<String>, ControlError> {
        self.socket.write_all(text.as_bytes()).map_err(ControlError::Broken)?;
        let until = Instant::now() + PATIENCE;
        loop {
            let first = self.line(until)?.ok_or_else(too_late)?;
            match self.reply(first, until)? {
                (650, _) if self.events.len() >= MAX_EVENTS => {
                    return Err(ControlError::Malformed("more events than anybody can hear"));
                }
                (650, lines) => self.events.push_back(lines.join("\n")),
                (200..300, lines) => return Ok(lines),
                (code, lines) => {
                    // Not the rest of it: that may be a secret.
                    let command = command.split(' ').next().unwrap_or_default().to_owned();
                    return Err(ControlError::Refused { command, code, text: lines.join("; ") });
                }
            }
        }
    }

    /// The rest of a reply, or of an event, that begins with this line.
    fn reply(&mut self, first: String, until: Instant) -> Result<(u16, Vec<String>), ControlError> {
        let (mut line, mut lines, mut left) = (first, Vec::new(), MAX_ANSWER);
        let mut next = |control: &mut Self| {
            let line = control.line(until)?.ok_or_else(too_late)?;
            left = left.checked_sub(line.len() + 1).ok_or(ControlError::Malformed("it has no end"))?;
            Ok::<_, ControlError>(line)
        };
        loop {
            let code =
                line.get(..3).and_then(|code| code.parse().ok()).ok_or(ControlError::Malformed("no code"))?;
            let (kind, mut text) = (line.get(3..4), line.get(4..).unwrap_or_default().to_owned());
            if kind == Some("+") {
                loop {
                    let data = next(self)?;
                    if data == "." {
                        break;
                    }
                    text.push('\n');
                    text += data.strip_prefix('.').unwrap_or(&data);
                }
            }
            lines.push(text);
            match kind {
                Some(" ") => return Ok((code, lines)),
                Some("-" | "+") => line = next(self)?,
                _ => return Err(ControlError::Malformed("no separator")),
            }
        }
    }

    /// The next line, if it comes by then. What has come already is looked at in each case.
    fn line(&mut self, until: Instant) -> Result<Option<String>, ControlError> {
        let (mut looked_at, mut is_last) = (0, false);
        loop {
            if let Some(end) = self.unread[looked_at..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=looked_at + end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            looked_at = self.unread.len();
            if looked_at > MAX_LINE {
                return Err(ControlError::Malformed("a line has no end"));
            }
            if is_last {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            is_last = left.is_zero();
            self.socket.wait_at_most(left).map_err(ControlError::Broken)?;
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(ControlError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(ControlError::Broken(error)),
                },
            }
        }
    }
}

fn too_late() -> ControlError {
    ControlError::Broken(io::ErrorKind::TimedOut.into())
}

/// Reads a cookie. Whoever listens named the file, so it may be no cookie at all: a pipe, a device, another's secret, or, where
/// nobody says that it is tor, a file whose content everybody knows.
fn cookie_at(path: &Path, trust: Trust<'_>) -> Result<[u8; COOKIE_LEN], ControlError> {
    let refused = |why: &dyn fmt::Display| {
        ControlError::Authentication(format!("can't read its cookie {}: {why}", path.display()))
    };
    let failed = |error: io::Error| refused(&error);
    let look = |meta: Metadata| {
        if !meta.is_file() || meta.len() != COOKIE_LEN as u64 {
            return Err(refused(&"it is no cookie of tor's"));
        }
        if matches!(trust, Trust::Found) && (!is_believed(&meta) || meta.mode() & 0o007 != 0) {
            return Err(refused(&"it is no secret of tor's"));
        }
        Ok(())
    };
    // Pipes and devices are not even opened.
    look(fs::metadata(path).map_err(failed)?)?;
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    look(file.metadata().map_err(failed)?)?;
    let mut cookie = [0; COOKIE_LEN];
    file.read_exact(&mut cookie).map_err(failed)?;
    Ok(cookie)
}

/// A QuotedString (control-spec, "General-use tokens").
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// What is in a QuotedString at the beginning of a text.
fn unquoted(text: &str) -> Option<String> {
    let (mut inside, mut out) = (text.strip_prefix('"')?.chars(), String::new());
    loop {
        match inside.next()? {
            '"' => return Some(out),
            '\\' => out.push(inside.next()?),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::spawn;

    use super::*;

    /// A control port that says these things, one for each line that it hears.
    fn port(answers: &'static [&'static str]) -> (Place, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap());
        let heard = spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut lines = io::BufRead::lines(io::BufReader::new(stream));
            let mut heard = Vec::new();
            for answer in answers {
                heard.push(lines.next().unwrap().unwrap());
                if answer.is_empty() {
                    continue;
                }
                writer.write_all(answer.replace('\n', "\r\n").as_bytes()).unwrap();
            }
            heard
        });
        (place, heard)
    }

    const HELLO: &str = "250-PROTOCOLINFO 1\n250-AUTH METHODS=NULL\n250-VERSION Tor=\"0.4.9.11\"\n250 OK\n";
    const VERSION: &str = "250-version=0.4.9.11\n250 OK\n";

    #[test]
    fn answers_data_and_events_are_told_apart() {
        let (place, heard) = port(&[
            HELLO,
            "250 OK\n",
            VERSION,
            "650 CIRC 1 BUILT\n250+x=\na\n..b\n.\n250 OK\n650-CONF_CHANGED\n650-A=1\n650 OK\n",
        ]);
        let mut control = Control::connect(&place, Trust::Named(None)).unwrap();
        assert_eq!(control.version(), "0.4.9.11");
        assert_eq!(control.get("x").unwrap(), "a\n.b");
        assert_eq!(control.event(PATIENCE).unwrap().unwrap(), "CIRC 1 BUILT");
        assert_eq!(control.event(PATIENCE).unwrap().unwrap(), "CONF_CHANGED\nA=1\nOK");
        assert!(matches!(control.event(PATIENCE), Err(ControlError::Broken(_))));
        assert_eq!(heard.join().unwrap()[3], "GETINFO x");
    }

    #[test]
    fn data_cannot_become_commands() {
        let (place, heard) = port(&[HELLO, "250 OK\n", VERSION, "", "", "", "", "250 OK\n"]);
        let mut control = Control::connect(&place, Trust::Named(None)).unwrap();
        control.ask_with("POSTDESCRIPTOR purpose=controller", "router x\n.\nSETCONF A=1\r\n").unwrap();
        let heard = heard.join().unwrap();
        assert_eq!(heard[3..], ["+POSTDESCRIPTOR purpose=controller", "router x", "..", "SETCONF A=1", "."]);
        let (place, _heard) = port(&[HELLO, "250 OK\n", VERSION]);
        assert!(Control::connect(&place, Trust::Named(None)).unwrap().ask("GETINFO x\nQUIT").is_err());
    }

    #[test]
    fn who_does_not_know_the_cookie_learns_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let cookie = dir.path().join("cookie");
        secret(&cookie, &[7; 32]);
        for trust in [Trust::Named(None), Trust::Found] {
            let challenge = "250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\n";
            let (place, heard) = port(vec![names(&cookie), challenge].leak());
            assert!(refusal(&place, trust).contains("does not know tor's cookie"));
            assert_eq!(heard.join().unwrap().len(), 2, "no AUTHENTICATE");
        }
    }

    /// A file that only its owner may read.
    fn secret(path: &Path, bytes: &[u8]) {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
        file.write_all(bytes).unwrap();
    }

    /// The hello of one who names this cookie.
    fn names(cookie: &Path) -> &'static str {
        format!("250-AUTH METHODS=SAFECOOKIE COOKIEFILE=\"{}\"\n250 OK\n", cookie.display()).leak()
    }

    fn refusal(place: &Place, trust: Trust<'_>) -> String {
        match Control::connect(place, trust) {
            Err(error @ ControlError::Authentication(_)) => error.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("let in"),
        }
    }

    #[test]
    fn who_listens_where_tors_often_are_has_to_show_that_it_is_one() {
        for methods in ["NULL", "HASHEDPASSWORD", "NULL,HASHEDPASSWORD", "COOKIE"] {
            let hello = &*format!("250-AUTH METHODS={methods}\n250 OK\n").leak();
            let (place, heard) = port(vec![hello].leak());
            assert!(refusal(&place, Trust::Found).contains("nothing shows"));
            assert_eq!(heard.join().unwrap(), ["PROTOCOLINFO 1"]);
        }
        let (place, heard) = port(&["250-AUTH METHODS=HASHEDPASSWORD\n250 OK\n", "250 OK\n", VERSION]);
        Control::connect(&place, Trust::Named(Some("a\"b"))).unwrap();
        assert_eq!(heard.join().unwrap()[1], "AUTHENTICATE \"a\\\"b\"");
    }

    #[test]
    fn a_socket_is_tors_only_in_a_folder_of_its_own() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Unix(dir.path().join("control"));
        for (mode, guarded) in [(0o700, true), (0o755, true), (0o777, false), (0o1777, false)] {
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(place.is_guarded(), guarded, "{mode:o}");
        }
        assert!(!Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 9051))).is_guarded());
    }

    #[test]
    fn only_a_cookie_is_read_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        secret(&file("cookie"), &[7; 32]);
        secret(&file("short"), &[7; 31]);
        secret(&file("long"), &[7; 33]);
        nix::unistd::mkfifo(&file("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", file("device")).unwrap();
        fs::write(file("open"), [7; 32]).unwrap();
        for trust in [Trust::Named(None), Trust::Found] {
            assert_eq!(cookie_at(&file("cookie"), trust).unwrap(), [7; 32]);
            for bad in ["short", "long", "pipe", "device", "none", "."] {
                assert!(cookie_at(&file(bad), trust).is_err(), "{bad}");
            }
        }
        // What everybody can read shows nothing.
        assert!(cookie_at(&file("open"), Trust::Named(None)).is_ok());
        assert!(cookie_at(&file("open"), Trust::Found).is_err());
    }

    #[test]
    fn an_answer_that_drips_is_given_up() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut control = Control {
            socket: Socket::Unix(near),
            unread: Vec::new(),
            events: VecDeque::new(),
            version: String::new(),
        };
        let drips = spawn(move || {
            while far.write_all(b"2").is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let start = Instant::now();
        assert!(control.line(start + Duration::from_millis(50)).unwrap().is_none());
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(control);
        drips.join().unwrap();
    }

    #[test]
    fn events_that_nobody_can_hear_end_it() {
        let (place, _heard) =
            port(vec![HELLO, "250 OK\n", VERSION, &*"650 X\n".repeat(MAX_EVENTS + 1).leak()].leak());
        let mut control = Control::connect(&place, Trust::Named(None)).unwrap();
        assert!(matches!(control.get("x"), Err(ControlError::Malformed(_))));
    }

    #[test]
    fn places_are_of_this_machine() {
        assert_eq!("/run/tor/control".parse(), Ok(Place::Unix("/run/tor/control".into())));
        assert_eq!("unix:/x".parse(), Ok(Place::Unix("/x".into())));
        assert!("127.0.0.1:9051".parse::<Place>().is_ok() && "[::1]:9051".parse::<Place>().is_ok());
        for bad in ["198.51.100.7:9051", "9051", "localhost:9051", ""] {
            assert!(bad.parse::<Place>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quoting_is_undone() {
        for text in ["", "a b", "a\"b\\c"] {
            assert_eq!(unquoted(&quoted(text)).as_deref(), Some(text));
        }
        assert_eq!(unquoted("\"x"), None);
    }
}
