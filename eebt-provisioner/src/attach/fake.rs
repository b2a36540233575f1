//! A control port that answers as tor's does, as far as attaching can tell; and exit bridges for it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use data_encoding::{BASE64_NOPAD, HEXUPPER};
use eebt_proto::{BridgeLine, CircuitReach, Reach};

use super::Place;

/// The bridge line of the exit bridge with this number.
pub fn line(n: u8) -> BridgeLine {
    let reach = CircuitReach {
        addresses: vec![format!("198.51.100.{n}:44321").parse().unwrap()],
        ed25519: [n; 32],
        rsa: [n; 20],
        ntor: [n; 32],
        protocols: "FlowCtrl=1-2 Relay=1-4".into(),
    };
    BridgeLine { reach: Reach::Circuit(reach), ports: "80,443".parse().unwrap(), expires: None }
}

/// Its fingerprint.
pub fn fingerprint(n: u8) -> String {
    HEXUPPER.encode(&[n; 20])
}

/// Its server descriptor, as far as it is read here.
pub fn descriptor(n: u8) -> String {
    let key = BASE64_NOPAD.encode(&[n; 32]);
    format!(
        "router Unnamed 198.51.100.{n} 44321 0 0\nmaster-key-ed25519 {key}\nfingerprint {}\nntor-onion-key {key}\n",
        fingerprint(n)
    )
}

/// What a tor knows, which tests may change, and what it was told.
#[derive(Default)]
pub struct State {
    pub options: HashMap<String, String>,
    pub mapped: Vec<(String, String)>,
    /// By fingerprint.
    pub descriptors: HashMap<String, String>,
    /// It takes none that it has not.
    pub wants_no_descriptors: bool,
    /// The fingerprint of one that it can't extend circuits to.
    pub unreachable: String,
    /// Lines of `circuit-status` and `stream-status`.
    pub circuits: Vec<String>,
    pub streams: Vec<String>,
    pub heard: Vec<String>,
    to: Option<TcpStream>,
    made: u32,
}

/// A tor that is none.
pub struct FakeTor {
    pub place: Place,
    state: Arc<Mutex<State>>,
}

impl FakeTor {
    /// One that knows guard and middle, and whole descriptors.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap());
        let hop = |c: char| format!("${}~x", c.to_string().repeat(40));
        let circuit = format!("1 BUILT {},{},{} PURPOSE=GENERAL", hop('A'), hop('B'), hop('C'));
        let options = HashMap::from([("UseMicrodescriptors".to_owned(), "0".to_owned())]);
        let state = State { circuits: vec![circuit], options, made: 1, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { place, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Says this to the controller that came last.
    pub fn say(&self, text: &str) {
        let mut state = self.state();
        let to = state.to.as_mut().unwrap();
        to.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    }

    /// The commands that it heard and that begin so, and forgets them.
    pub fn heard(&self, begin: &str) -> Vec<String> {
        self.state().heard.extract_if(.., |command| command.starts_with(begin)).collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    state.lock().unwrap().to = Some(stream.try_clone().unwrap());
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    while let Some(command) = lines.next() {
        let data = |line: &String| line != ".";
        let data: Vec<String> =
            if command.starts_with('+') { lines.by_ref().take_while(data).collect() } else { Vec::new() };
        // Told and done at once, as events are.
        let mut state = state.lock().unwrap();
        let answer = answer(&mut state, command.trim_start_matches('+'), &data.join("\n"));
        state.heard.push(command);
        if stream.write_all(answer.replace('\n', "\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(state: &mut State, command: &str, data: &str) -> String {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    let value = |value: &str| format!("250+{rest}=\n{value}\n.\n250 OK\n");
    let ok = || "250 OK\n".to_owned();
    match verb {
        "PROTOCOLINFO" => "250-AUTH METHODS=NULL\n250 OK\n".into(),
        "GETCONF" => match state.options.get(rest) {
            Some(value) => format!("250 {rest}={value}\n"),
            None => format!("250 {rest}\n"),
        },
        "SETCONF" => {
            let (name, value) = rest.split_once('=').unwrap();
            state.options.insert(name.to_owned(), value.trim_matches('"').to_owned());
            ok()
        }
        "GETINFO" => match rest {
            "version" => "250-version=0.4.9.11\n250 OK\n".into(),
            "process/pid" => "250-process/pid=7\n250 OK\n".into(),
            "status/bootstrap-phase" => "250-status/bootstrap-phase=NOTICE PROGRESS=100\n250 OK\n".into(),
            "status/enough-dir-info" => "250-status/enough-dir-info=1\n250 OK\n".into(),
            "circuit-status" => value(&state.circuits.join("\n")),
            "stream-status" => value(&state.streams.join("\n")),
            "address-mappings/control" => {
                let lines = state.mapped.iter().map(|(from, to)| format!("{from} {to} NEVER"));
                value(&lines.collect::<Vec<_>>().join("\n"))
            }
            _ if rest.starts_with("ns/id/") => {
                value("r x a b c d 192.0.2.7 9001 0\ns Fast\np reject 1-65535")
            }
            _ => match rest.strip_prefix("desc/id/").and_then(|id| state.descriptors.get(id)) {
                Some(descriptor) => value(descriptor.trim_end()),
                None => "551 not here\n".into(),
            },
        },
        "MAPADDRESS" => {
            for (from, to) in rest.split(' ').filter_map(|pair| pair.split_once('=')) {
                state.mapped.retain(|(other, _)| other != from);
                if from != to {
                    state.mapped.push((from.to_owned(), to.to_owned()));
                }
            }
            ok()
        }
        "POSTDESCRIPTOR" => {
            let id = data.lines().find_map(|line| line.strip_prefix("fingerprint "));
            if data.contains("forged") {
                return "554 Couldn't parse router descriptor.\n".into();
            }
            if state.wants_no_descriptors {
                return "251 Router descriptor was not new.\n".into();
            }
            state.descriptors.insert(id.unwrap_or_default().to_owned(), data.to_owned());
            ok()
        }
        "EXTENDCIRCUIT" => {
            let last = rest.rsplit(',').next().unwrap_or_default();
            if rest != "0" && (last == state.unreachable || !state.descriptors.contains_key(last)) {
                return format!("552 No descriptor for \"{last}\"\n");
            }
            state.made += 1;
            format!("250 EXTENDED {}\n", state.made)
        }
        _ => ok(),
    }
}
