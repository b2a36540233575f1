//! An exit bridge, and what is known of it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use data_encoding::{BASE64_NOPAD, HEXUPPER};
use eebt_proto::{BridgeLine, CircuitReach, Reach};

use super::pace::Pace;

/// So many failures without a stream between them, and an exit bridge counts as dead; it is tried again after the pause,
/// which is twice as long each time, up to the longest one.
const MAX_FAILURES: u32 = 2;
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);
/// Between circuits that come to nothing.
const LAYING: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Between askings for a new server descriptor.
const ASKING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// An exit bridge that tor can use.
pub struct ExitBridge {
    pub(super) line: BridgeLine,
    pub(super) fingerprint: String,
    pub(super) addresses: Vec<IpAddr>,
    /// All that fit its bridge line. Which is signed well, tor will say.
    pub(super) descriptors: Vec<String>,
    failures: u32,
    pub(super) dead_until: Option<Instant>,
    pub(super) ended: bool,
    pub(super) laying: Pace,
    pub(super) asking: Pace,
}

impl ExitBridge {
    /// From its bridge line and server descriptors, some of which are its own.
    ///
    /// # Errors
    /// Says what does not fit together.
    pub fn new(line: &BridgeLine, descriptors: &[String]) -> Result<Self, String> {
        let Reach::Circuit(reach) = &line.reach else {
            return Err("tor can't extend circuits to an onion exit bridge".into());
        };
        let mut exit_bridge = Self {
            line: line.clone(),
            fingerprint: HEXUPPER.encode(&reach.rsa),
            addresses: reach.addresses.iter().map(SocketAddr::ip).collect(),
            descriptors: Vec::new(),
            failures: 0,
            dead_until: None,
            ended: false,
            laying: Pace::new(LAYING.0, LAYING.1),
            asking: Pace::new(ASKING.0, ASKING.1),
        };
        exit_bridge.take(descriptors).map(|()| exit_bridge)
    }

    /// Takes those that are its own in place of what it had.
    pub(super) fn take(&mut self, descriptors: &[String]) -> Result<(), String> {
        let (mut own, mut why) = (Vec::new(), "it gave no server descriptor".to_owned());
        for descriptor in descriptors {
            match self.fits(descriptor) {
                Ok(()) => own.push(descriptor.clone()),
                Err(error) => why = error,
            }
        }
        if own.is_empty() {
            return Err(why);
        }
        self.descriptors = own;
        Ok(())
    }

    /// Says a server descriptor the same as the bridge line?
    pub(super) fn fits(&self, descriptor: &str) -> Result<(), String> {
        let Reach::Circuit(reach) = &self.line.reach else { return Err("no circuits lead there".into()) };
        match misfit(reach, &self.fingerprint, descriptor) {
            None => Ok(()),
            Some(what) => {
                Err(format!("{what}: its server descriptor says something else than its bridge line"))
            }
        }
    }

    /// RSA identity, 40 upper-case hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Do hosts leave through it?
    pub fn serves(&self) -> bool {
        !self.ended && self.dead_until.is_none()
    }

    /// A circuit leads there. Whether it counted as dead before.
    pub(super) fn reached(&mut self) -> bool {
        self.laying.succeeded();
        self.dead_until.take().is_some()
    }

    /// A stream is open there.
    pub(super) fn used(&mut self) {
        self.failures = 0;
    }

    /// It failed once more. Whether it counts as dead since then.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures += 1;
        if self.failures < MAX_FAILURES {
            return false;
        }
        let pause = PAUSE.saturating_mul(1 << (self.failures - MAX_FAILURES).min(8)).min(LONGEST_PAUSE);
        self.dead_until.replace(now + pause).is_none()
    }
}

/// The server descriptors in a text.
pub fn descriptors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("router ") {
            found.push(String::new());
        }
        if let Some(descriptor) = found.last_mut() {
            *descriptor += line;
            descriptor.push('\n');
        }
    }
    found
}

/// What a server descriptor says otherwise.
fn misfit(reach: &CircuitReach, fingerprint: &str, descriptor: &str) -> Option<&'static str> {
    let word = |keyword: &str| {
        let found = descriptor.lines().find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '));
        found.unwrap_or_default().trim_end().trim_end_matches('=').to_owned()
    };
    let router = word("router");
    let router: Vec<&str> = router.split(' ').collect();
    let address: Option<SocketAddr> = match &router[..] {
        [_, ip, port, ..] => format!("{ip}:{port}").parse().ok(),
        _ => None,
    };
    let says = [
        ("fingerprint", word("fingerprint").replace(' ', "") == fingerprint),
        ("master-key-ed25519", word("master-key-ed25519") == BASE64_NOPAD.encode(&reach.ed25519)),
        ("ntor-onion-key", word("ntor-onion-key") == BASE64_NOPAD.encode(&reach.ntor)),
        ("router", address.is_some_and(|address| reach.addresses.contains(&address))),
    ];
    says.into_iter().find(|(_, fits)| !fits).map(|(what, _)| what)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{descriptor, line};
    use super::*;

    #[test]
    fn all_descriptors_that_fit_are_kept_and_no_others() {
        let (own, lookalike) = (descriptor(1), descriptor(1) + "forged\n");
        let text = format!("noise\n{lookalike}{}{own}", descriptor(2));
        let exit_bridge = ExitBridge::new(&line(1), &descriptors(&text)).unwrap();
        assert_eq!(exit_bridge.descriptors, [lookalike, own]);
        let Err(why) = ExitBridge::new(&line(3), &descriptors(&text)) else { panic!("took another's") };
        assert!(why.starts_with("fingerprint: "), "{why}");
        let other = descriptor(1).replace("198.51.100.1 ", "198.51.100.2 ");
        assert!(ExitBridge::new(&line(1), &[other]).is_err_and(|why| why.starts_with("router: ")));
    }

    #[test]
    fn who_fails_twice_is_dead_for_longer_each_time() {
        let (mut one, now) = (ExitBridge::new(&line(1), &[descriptor(1)]).unwrap(), Instant::now());
        assert!(!one.failed(now) && one.serves());
        assert!(one.failed(now) && !one.serves());
        assert_eq!(one.dead_until, Some(now + PAUSE));
        assert!(!one.failed(now));
        assert_eq!(one.dead_until, Some(now + PAUSE * 2));
        assert!(one.reached() && one.serves() && !one.reached());
        // Until a stream is open there, the next failure is one too many.
        assert!(one.failed(now));
        one.reached();
        one.used();
        assert!(!one.failed(now));
    }
}
