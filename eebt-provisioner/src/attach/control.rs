//! C tor's control port (control-spec), as far as attaching needs it. No other role talks to one, and the crates that do
//! have not been kept (docs/adr/0019).

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use data_encoding::{HEXLOWER_PERMISSIVE, HEXUPPER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How long tor may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line that is read, in bytes; an answer has at most [`MAX_LINES`] of them.
const MAX_LINE: usize = 1 << 20;
const MAX_LINES: usize = 1 << 18;
/// What is authenticated with the cookie (control-spec, AUTHCHALLENGE), and how long that is.
const SERVER_TO_CONTROLLER: &[u8] = b"Tor safe cookie authentication server-to-controller hash";
const CONTROLLER_TO_SERVER: &[u8] = b"Tor safe cookie authentication controller-to-server hash";
const COOKIE_LEN: usize = 32;

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
                "`CookieAuthentication 1` in torrc, and be a user who may read the cookie; or --password-file"
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
    /// Connects and authenticates: by nothing, by the cookie, or by this password.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn connect(place: &Place, password: Option<&str>) -> Result<Self, ControlError> {
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
        control.authenticate(&info, password)?;
        control.version = control.get("version")?;
        Ok(control)
    }

    /// Which tor it is, such as `0.4.9.11`.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn authenticate(&mut self, info: &[String], password: Option<&str>) -> Result<(), ControlError> {
        let auth = info.iter().find_map(|line| line.strip_prefix("AUTH METHODS=")).unwrap_or_default();
        let (methods, rest) = auth.split_once(' ').unwrap_or((auth, ""));
        let has = |method: &str| methods.split(',').any(|known| known == method);
        let cookie = rest.strip_prefix("COOKIEFILE=").and_then(unquoted);
        let proof = match (password, cookie) {
            _ if has("NULL") => String::new(),
            (Some(password), _) if has("HASHEDPASSWORD") => format!(" {}", quoted(password)),
            (_, Some(path)) if has("SAFECOOKIE") => format!(" {}", self.safe_cookie(Path::new(&path))?),
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
    fn safe_cookie(&mut self, path: &Path) -> Result<String, ControlError> {
        let cookie = std::fs::read(path).map_err(|error| {
            ControlError::Authentication(format!("can't read its cookie {}: {error}", path.display()))
        })?;
        if cookie.len() != COOKIE_LEN {
            return Err(ControlError::Authentication(format!("{} is no cookie of tor's", path.display())));
        }
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
            Ok::<_, ControlError>(mac.chain_update(&cookie).chain_update(nonce).chain_update(&theirs))
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
        let Some(first) = self.line(limit)? else { return Ok(None) };
        match self.reply(first)? {
            (650, lines) => Ok(Some(lines.join("\n"))),
            _ => Err(ControlError::Malformed("an answer to nothing")),
        }
    }

    fn send(&mut self, command: &str, text: &str) -> Result<Vec<String>, ControlError> {
        self.socket.write_all(text.as_bytes()).map_err(ControlError::Broken)?;
        loop {
            let first = self.line(PATIENCE)?;
            let first = first.ok_or_else(|| ControlError::Broken(io::ErrorKind::TimedOut.into()))?;
            match self.reply(first)? {
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
    fn reply(&mut self, first: String) -> Result<(u16, Vec<String>), ControlError> {
        let (mut line, mut lines, mut left) = (first, Vec::new(), MAX_LINES);
        let mut next = |control: &mut Self| {
            left = left.checked_sub(1).ok_or(ControlError::Malformed("it has no end"))?;
            control.line(PATIENCE)?.ok_or_else(|| ControlError::Broken(io::ErrorKind::TimedOut.into()))
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
                    text = text + "\n" + data.strip_prefix('.').unwrap_or(&data);
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

    /// The next line, if it comes in this time.
    fn line(&mut self, limit: Duration) -> Result<Option<String>, ControlError> {
        let until = Instant::now() + limit;
        let mut looked_at = 0;
        loop {
            if let Some(end) = self.unread[looked_at..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=looked_at + end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            looked_at = self.unread.len();
            if looked_at > MAX_LINE {
                return Err(ControlError::Malformed("a line has no end"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && looked_at == 0 {
                return Ok(None);
            }
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
        let mut control = Control::connect(&place, None).unwrap();
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
        let mut control = Control::connect(&place, None).unwrap();
        control.ask_with("POSTDESCRIPTOR purpose=controller", "router x\n.\nSETCONF A=1\r\n").unwrap();
        let heard = heard.join().unwrap();
        assert_eq!(heard[3..], ["+POSTDESCRIPTOR purpose=controller", "router x", "..", "SETCONF A=1", "."]);
        let (place, _heard) = port(&[HELLO, "250 OK\n", VERSION]);
        assert!(Control::connect(&place, None).unwrap().ask("GETINFO x\nQUIT").is_err());
    }

    #[test]
    fn who_does_not_know_the_cookie_learns_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let cookie = dir.path().join("cookie");
        std::fs::write(&cookie, [7; 32]).unwrap();
        let hello = format!("250-AUTH METHODS=SAFECOOKIE COOKIEFILE=\"{}\"\n250 OK\n", cookie.display());
        let challenge = "250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\n";
        let answers: &'static [&'static str] = vec![&*hello.leak(), challenge].leak();
        let (place, heard) = port(answers);
        let Err(error) = Control::connect(&place, None) else { panic!("let in") };
        assert!(matches!(error, ControlError::Authentication(_)), "{error}");
        assert_eq!(heard.join().unwrap().len(), 2, "no AUTHENTICATE");
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
