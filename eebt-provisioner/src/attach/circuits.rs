//! The circuits that are laid to exit bridges before a stream wants one, so that tor has a short one at hand.
//!
//! Left alone, tor lengthens one of its spare circuits, whose last relay is an exit, and exit bridges hear no exits. So
//! these are laid relay by relay: guard and middle are those of a circuit that tor made for itself, by all its own
//! rules, and behind them comes the exit bridge.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::control::{Control, ControlError};

/// Why a stream ended, where tor then gives that exit no other one for as long as it runs.
const FOR_GOOD: [&str; 2] = ["RESOURCELIMIT", "HIBERNATING"];

/// Longest time that one may take; tor's own limit is that of a network it does not know yet.
const LIMIT: Duration = Duration::from_secs(20);

/// What became of a circuit of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It leads to this exit bridge.
    Built(usize),
    /// A stream is open on it.
    Used(usize),
    /// This exit bridge could not be reached from the relay before it, or a circuit to it was taken down unused. Who does
    /// that again and again would have us build so many that relays of its own are among them.
    Unreached(usize),
    /// It never came as far as this exit bridge.
    Lost(usize),
    /// It is gone, as circuits go.
    Gone,
}

struct Ours {
    exit_bridge: usize,
    since: Instant,
    built: bool,
    used: bool,
    /// Relays that it leads to so far. The last step, behind the second one, is the exit bridge's own.
    hops: usize,
    /// Slower than tor likes: it gives such a circuit to nobody, and goes on with it to learn how long they take.
    slow: bool,
}

/// The circuits that we had tor make, by their numbers.
#[derive(Default)]
pub struct Circuits(HashMap<String, Ours>);

impl Circuits {
    /// One is being made.
    pub fn made(&mut self, id: String, exit_bridge: usize, now: Instant) {
        self.0.insert(id, Ours { exit_bridge, since: now, built: false, used: false, hops: 0, slow: false });
    }

    /// How many to this exit bridge may still carry their first stream.
    pub fn spare(&self, exit_bridge: usize) -> usize {
        self.0.values().filter(|ours| ours.exit_bridge == exit_bridge && !ours.used && !ours.slow).count()
    }

    /// Takes note of an event, CIRC or STREAM (control-spec).
    pub fn hear(&mut self, event: &str) -> Option<Became> {
        let words = words(event);
        let (kind, id, status) = (*words.first()?, *words.get(1)?, *words.get(2)?);
        let third = words.get(3).copied();
        if kind == "STREAM" {
            let ours = self.0.get_mut(third?)?;
            ours.used = true;
            return (status == "SUCCEEDED").then_some(Became::Used(ours.exit_bridge));
        }
        if kind != "CIRC" {
            return None;
        }
        let ours = self.0.get_mut(id)?;
        let exit_bridge = ours.exit_bridge;
        ours.hops = third.map_or(0, |path| hops(path).len());
        match status {
            "BUILT" => {
                ours.built = true;
                if ours.slow {
                    self.0.remove(id);
                }
                Some(Became::Built(exit_bridge))
            }
            "FAILED" if value(&words, "REASON") == Some("TIMEOUT") => {
                ours.slow = true;
                None
            }
            "FAILED" | "CLOSED" => {
                let ours = self.0.remove(id)?;
                let dropped = !ours.used && value(&words, "REMOTE_REASON").is_some();
                Some(match ours.built {
                    false => ours.unbuilt(),
                    true if dropped => Became::Unreached(exit_bridge),
                    true => Became::Gone,
                })
            }
            _ => None,
        }
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Those that take too long, which are forgotten here: the number, and what became of it.
    pub fn overdue(&mut self, now: Instant) -> Vec<(String, Became)> {
        let late = |ours: &Ours| !ours.built && now.duration_since(ours.since) > LIMIT;
        self.0.extract_if(|_, ours| late(ours)).map(|(id, ours)| (id, ours.unbuilt())).collect()
    }
}

impl Ours {
    fn unbuilt(&self) -> Became {
        if self.hops == 2 { Became::Unreached(self.exit_bridge) } else { Became::Lost(self.exit_bridge) }
    }
}

/// Does this event say that tor will give this exit bridge no more streams?
pub fn is_given_up(event: &str, fingerprint: &str) -> bool {
    let words = words(event);
    let ["STREAM", _, _, _, target, ..] = words[..] else { return false };
    let exit = target.rsplit_once(':').and_then(|(host, _)| host.strip_suffix(".exit")?.rsplit('.').next());
    exit == Some(fingerprint) && value(&words, "REMOTE_REASON").is_some_and(|why| FOR_GOOD.contains(&why))
}

/// The words of an event or of a status. A QuotedString is no end of a word, whatever is in it: names and passwords that
/// any web page may have chosen.
pub(super) fn words(text: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == ' ' && !quoted
    };
    text.split(parts).collect()
}

/// What a word of the form `KEY=VALUE` says.
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The relays of a path, as fingerprints in hexadecimal.
pub(super) fn hops(path: &str) -> Vec<&str> {
    let fingerprint = |hop: &'_ str| -> Option<usize> { hop.strip_prefix('$').map(|hop| hop.len().min(40)) };
    path.split(',').filter_map(|hop| hop.get(1..=fingerprint(hop)?)).collect()
}

/// Guard and middle of a circuit that tor made for itself, as fingerprints. One that suits an exit bridge at these
/// addresses: no exit for a middle, and nobody in its neighbourhood where tor heeds that.
///
/// # Errors
/// See [`ControlError`].
pub fn stem(
    control: &mut Control,
    addresses: &[IpAddr],
    not: &Circuits,
) -> Result<Option<(String, String)>, ControlError> {
    let distinct = control.option("EnforceDistinctSubnets")?.first().is_none_or(|value| value != "0");
    let status = control.get("circuit-status")?;
    let mut pairs: Vec<_> = status
        .lines()
        .filter_map(|line| {
            let words = words(line);
            let [id, "BUILT", path, rest @ ..] = &words[..] else { return None };
            let general =
                rest.iter().any(|word| ["PURPOSE=GENERAL", "PURPOSE=CONFLUX_LINKED"].contains(word));
            let [guard, middle, _exit] = hops(path)[..] else { return None };
            (general && !not.0.contains_key(*id)).then(|| (guard.to_owned(), middle.to_owned()))
        })
        .collect();
    pairs.sort();
    pairs.dedup();
    while !pairs.is_empty() {
        let (guard, middle) = pairs.swap_remove(rand::random_range(0..pairs.len()));
        // A guard that is a Tor bridge is in no consensus, and then nothing is known of it.
        let (first, second) = (Relay::ask(control, &guard)?, Relay::ask(control, &middle)?);
        let far = |relay: &Option<Relay>| relay.as_ref().is_none_or(|relay| !relay.is_near(addresses));
        let suits = second.as_ref().is_some_and(|relay| !relay.exit);
        if suits && (!distinct || far(&first) && far(&second)) {
            return Ok(Some((guard, middle)));
        }
    }
    Ok(None)
}

/// What the consensus says of a relay.
struct Relay {
    ip: Ipv4Addr,
    exit: bool,
}

impl Relay {
    fn ask(control: &mut Control, fingerprint: &str) -> Result<Option<Self>, ControlError> {
        match control.get(&format!("ns/id/{fingerprint}")) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(ControlError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From an entry of a consensus (dir-spec, "Router status entries").
    fn parse(text: &str) -> Option<Self> {
        let ip = text.lines().find_map(|line| line.strip_prefix("r ")?.split(' ').nth(5)?.parse().ok())?;
        let flag = text
            .lines()
            .filter_map(|line| line.strip_prefix("s "))
            .any(|line| line.split(' ').any(|f| f == "Exit"));
        let some_port =
            text.lines().filter_map(|line| line.strip_prefix("p ")).any(|line| line != "reject 1-65535");
        Some(Self { ip, exit: flag || some_port })
    }

    /// Is it in the /16 of one of these? Tor's own measure.
    fn is_near(&self, addresses: &[IpAddr]) -> bool {
        let [a, b, ..] = self.ip.octets();
        addresses.iter().any(|other| matches!(other, IpAddr::V4(other) if other.octets()[..2] == [a, b]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "$A0E89C3026FA65161B869AABDBB33E75EF7A8CA8~middle1";
    const B: &str = "$42DDD11FC43F0D051337D784C4C24BD8B9CE3E46";

    #[test]
    fn a_circuit_is_spare_until_a_stream_is_on_it() {
        let (mut circuits, now) = (Circuits::default(), Instant::now());
        circuits.made("7".into(), 1, now);
        assert_eq!((circuits.spare(0), circuits.spare(1)), (0, 1));
        assert_eq!(circuits.hear(&format!("CIRC 7 EXTENDED {A}")), None);
        assert_eq!(
            circuits.hear(&format!("CIRC 7 BUILT {A},{B},{B} PURPOSE=GENERAL")),
            Some(Became::Built(1))
        );
        assert_eq!(circuits.hear("STREAM 3 SENTCONNECT 7 a.example.X.exit:443"), None);
        assert_eq!(circuits.spare(1), 0);
        assert_eq!(circuits.hear("STREAM 3 SUCCEEDED 7 192.0.2.1:443"), Some(Became::Used(1)));
        assert!(circuits.overdue(now + LIMIT * 2).is_empty());
        assert_eq!(circuits.hear(&format!("CIRC 7 CLOSED {A},{B},{B} REASON=DESTROYED")), Some(Became::Gone));
        assert_eq!(circuits.hear("CIRC 7 CLOSED"), None);
    }

    #[test]
    fn a_spare_that_was_taken_down_from_afar_counts_against_the_exit_bridge() {
        let (mut circuits, now) = (Circuits::default(), Instant::now());
        for (reason, became) in
            [("DESTROYED REMOTE_REASON=FINISHED", Became::Unreached(0)), ("FINISHED", Became::Gone)]
        {
            circuits.made("1".into(), 0, now);
            circuits.hear(&format!("CIRC 1 BUILT {A},{B},{B}"));
            let closed = format!("CIRC 1 CLOSED {A},{B},{B} PURPOSE=GENERAL REASON={reason}");
            assert_eq!(circuits.hear(&closed), Some(became));
        }
    }

    #[test]
    fn only_the_last_step_is_the_exit_bridges_own() {
        let (mut circuits, now) = (Circuits::default(), Instant::now());
        for (event, became) in [
            (format!("CIRC 1 FAILED {A} REASON=DESTROYED"), Became::Lost(4)),
            ("CIRC 1 FAILED REASON=CHANNEL_CLOSED".into(), Became::Lost(4)),
            (
                format!("CIRC 1 FAILED {A},{B} REASON=DESTROYED REMOTE_REASON=CONNECTFAILED"),
                Became::Unreached(4),
            ),
        ] {
            circuits.made("1".into(), 4, now);
            assert_eq!(circuits.hear(&event), Some(became), "{event}");
        }
        for (extended, became) in [
            ("CIRC 2 LAUNCHED".to_owned(), Became::Lost(4)),
            (format!("CIRC 2 EXTENDED {A}"), Became::Lost(4)),
            (format!("CIRC 2 EXTENDED {A},{B}"), Became::Unreached(4)),
        ] {
            circuits.made("2".into(), 4, now);
            assert_eq!(circuits.hear(&extended), None);
            assert_eq!(circuits.overdue(now + LIMIT * 2), [("2".to_owned(), became)], "{extended}");
        }
        assert_eq!(circuits.spare(4), 0);
    }

    #[test]
    fn a_slow_circuit_is_no_spare_and_still_shows_that_the_exit_bridge_serves() {
        let mut circuits = Circuits::default();
        circuits.made("1".into(), 0, Instant::now());
        assert_eq!(circuits.hear(&format!("CIRC 1 FAILED {A},{B} PURPOSE=GENERAL REASON=TIMEOUT")), None);
        assert_eq!(circuits.spare(0), 0);
        let built = format!("CIRC 1 BUILT {A},{B},{B} PURPOSE=MEASURE_TIMEOUT");
        assert_eq!(circuits.hear(&built), Some(Became::Built(0)));
        circuits.made("2".into(), 0, Instant::now());
        assert_eq!(circuits.hear(&format!("CIRC 2 FAILED {A},{B} PURPOSE=GENERAL REASON=TIMEOUT")), None);
        let closed = format!("CIRC 2 CLOSED {A},{B} PURPOSE=MEASURE_TIMEOUT REASON=FINISHED");
        assert_eq!(circuits.hear(&closed), Some(Became::Unreached(0)));
    }

    #[test]
    fn tor_gives_up_an_exit_bridge_by_what_it_says_of_a_stream() {
        let event = |reason: &str| {
            format!("STREAM 8 DETACHED 7 a.example.AB.exit:443 REASON=END REMOTE_REASON={reason}")
        };
        assert!(is_given_up(&event("RESOURCELIMIT"), "AB") && is_given_up(&event("HIBERNATING"), "AB"));
        assert!(!is_given_up(&event("RESOURCELIMIT"), "B") && !is_given_up(&event("CONNECTREFUSED"), "AB"));
    }

    #[test]
    fn what_a_page_may_choose_is_no_field_of_an_event() {
        let forged = r#"SOCKS_USERNAME="\\\" x .AB.exit:443 REMOTE_REASON=RESOURCELIMIT REASON=TIMEOUT""#;
        let stream = format!("STREAM 8 DETACHED 7 a.example:443 REASON=END {forged} SESSION_GROUP=-4");
        assert!(!is_given_up(&stream, "AB"));
        let stream = format!("STREAM 8 DETACHED 7 a.example.AB.exit:443 REASON=END {forged}");
        assert!(!is_given_up(&stream, "AB"));
        let mut circuits = Circuits::default();
        circuits.made("1".into(), 0, Instant::now());
        circuits.hear(&format!("CIRC 1 BUILT {A},{B},{B} {forged}"));
        let closed = format!("CIRC 1 CLOSED {A},{B},{B} {forged} REASON=FINISHED");
        assert_eq!(circuits.hear(&closed), Some(Became::Gone));
    }

    #[test]
    fn a_relay_with_any_open_port_counts_as_an_exit() {
        let entry = |flags: &str, ports: &str| {
            format!(
                "r n aaaa bbbb 2038-01-01 00:00:00 198.51.100.7 9001 0\ns {flags}\nw Bandwidth=1\np {ports}\n"
            )
        };
        let parse = |flags, ports| Relay::parse(&entry(flags, ports)).unwrap();
        assert!(!parse("Fast Running", "reject 1-65535").exit);
        assert!(parse("Exit Fast Running", "reject 1-65535").exit);
        assert!(parse("Fast Running", "accept 25").exit);
        let relay = parse("Fast", "reject 1-65535");
        assert!(relay.is_near(&["198.51.7.1".parse().unwrap()]));
        assert!(!relay.is_near(&["198.52.100.7".parse().unwrap(), "2001:db8::1".parse().unwrap()]));
        assert!(Relay::parse("r n aaaa").is_none());
    }
}
