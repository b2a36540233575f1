//! What is known of the machine and its line: is the owner away, is power cheap, is the line theirs?
//!
//! Each [`Source`] asks one part of the system, tells what it can, and opens itself again when that
//! part comes late or breaks. [`Watch`] looks at each in its own pace and merges what they tell.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};
use tokio::sync::watch;

#[cfg(not(target_os = "linux"))]
mod elsewhere;
pub mod fake;
#[cfg(target_os = "linux")]
pub mod linux;

/// What is known of the machine and its line at one moment. `None`: nobody here can tell.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Facts {
    /// Since the last key or pointer movement. As JSON: seconds.
    #[serde(deserialize_with = "seconds")]
    pub idle: Option<Duration>,
    /// The same at terminals and at other people's desktops, from who can't see into ours.
    #[serde(skip)]
    pub elsewhere: Option<Duration>,
    /// Which line it is: the hardware address of its router.
    pub line: Option<String>,
    /// The machine runs on its battery.
    pub on_battery: Option<bool>,
    /// The line is paid by the byte.
    pub metered: Option<bool>,
    /// What leaves the machine leaves through a tunnel, so its address is not the home's.
    pub vpn: Option<bool>,
    /// The line wants a log-in page filled in first.
    pub captive_portal: Option<bool>,
    /// The window in front covers the screen: a game, a film, a talk.
    pub full_screen: Option<bool>,
    /// Bytes a second on the line that are not ours, both ways.
    pub other_traffic: Option<u64>,
}

/// Somebody who can tell some of the facts.
///
/// Blocking: to be called on a plain thread, never inside an async runtime.
pub trait Source: Send {
    /// For the page and the log: "X11", "NetworkManager".
    fn name(&self) -> &'static str;
    /// How long what it said last stays true enough.
    fn every(&self) -> Duration;
    /// What it can tell now; all `None` when it can tell nothing. Takes a second or two at most.
    fn look(&mut self) -> Facts;
}

/// All that may work on this machine. One that doesn't work now tells nothing, and tries again now and then:
/// an X server or a session bus may come later than we do.
///
/// `own_bytes` counts the bytes that we carry to and from targets, both ways, each byte once.
pub fn of_this_machine(own_bytes: Arc<AtomicU64>) -> Vec<Box<dyn Source>> {
    #[cfg(target_os = "linux")]
    return linux::of_this_machine(own_bytes);
    #[cfg(not(target_os = "linux"))]
    return elsewhere::of_this_machine(own_bytes);
}

/// A source that can't see into our own desktop.
pub struct Elsewhere<S>(pub S);

impl<S: Source> Source for Elsewhere<S> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn every(&self) -> Duration {
        self.0.every()
    }

    fn look(&mut self) -> Facts {
        let told = self.0.look();
        Facts { idle: None, elsewhere: told.idle, ..told }
    }
}

/// What several sources know together. Whoever saw the owner last is right, and one who sees a reason
/// not to lend is believed.
pub fn merge<'a>(all: impl IntoIterator<Item = &'a Facts>) -> Facts {
    all.into_iter().fold(Facts::default(), |known, told| Facts {
        idle: both(known.idle, told.idle, Duration::min),
        elsewhere: both(known.elsewhere, told.elsewhere, Duration::min),
        line: known.line.or_else(|| told.line.clone()),
        on_battery: both(known.on_battery, told.on_battery, std::ops::BitOr::bitor),
        metered: both(known.metered, told.metered, std::ops::BitOr::bitor),
        vpn: both(known.vpn, told.vpn, std::ops::BitOr::bitor),
        captive_portal: both(known.captive_portal, told.captive_portal, std::ops::BitOr::bitor),
        full_screen: both(known.full_screen, told.full_screen, std::ops::BitOr::bitor),
        other_traffic: both(known.other_traffic, told.other_traffic, u64::max),
    })
}

fn both<T>(a: Option<T>, b: Option<T>, join: impl Fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(join(a, b)),
        (one, other) => one.or(other),
    }
}

/// What was seen so long ago holds no more: whoever looks hangs.
const STALE: Duration = Duration::from_secs(60);

/// What is known, and since when.
#[derive(Debug, Default)]
pub struct Seen {
    facts: Facts,
    at: Option<Instant>,
}

impl Seen {
    /// What is known now; `None` when nobody has looked yet, or for a minute.
    pub fn facts(&self, now: Instant) -> Option<&Facts> {
        let fresh = self.at.is_some_and(|at| now.saturating_duration_since(at) < STALE);
        fresh.then_some(&self.facts)
    }
}

/// Looks again and again, on a thread of its own, for the sources wait. Other facts than before, and the first ones, are a change.
pub fn watch(sources: Vec<Box<dyn Source>>) -> watch::Receiver<Seen> {
    let (sender, receiver) = watch::channel(Seen::default());
    std::thread::spawn(move || {
        let mut watch = Watch::new(sources);
        while !sender.is_closed() {
            // What is looked at first is the oldest when all was looked at.
            let now = Instant::now();
            let facts = watch.look(now);
            sender.send_if_modified(|before| {
                let new = before.at.is_none() || before.facts != facts;
                *before = Seen { facts, at: Some(now) };
                new
            });
            let pause = watch.due().map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
            std::thread::sleep(pause);
        }
    });
    receiver
}

/// Pause when there is nobody to look at.
const IDLE: Duration = Duration::from_secs(1);

/// Looks at each source in its own pace and remembers what it told.
pub struct Watch(Vec<Watched>);

struct Watched {
    source: Box<dyn Source>,
    told: Facts,
    due: Option<Instant>,
}

impl Watch {
    /// Watches these; nobody is looked at yet.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        let watched = |source| Watched { source, told: Facts::default(), due: None };
        Self(sources.into_iter().map(watched).collect())
    }

    /// Looks at those that are due, and says what all know together.
    pub fn look(&mut self, now: Instant) -> Facts {
        for one in &mut self.0 {
            if one.due.is_none_or(|due| due <= now) {
                one.told = one.source.look();
                one.due = Some(now + one.source.every());
            }
        }
        let known = merge(self.0.iter().map(|one| &one.told));
        // That nobody types elsewhere says nothing of our own desktop.
        let idle = known.idle.map(|idle| known.elsewhere.map_or(idle, |elsewhere| idle.min(elsewhere)));
        Facts { idle, elsewhere: None, ..known }
    }

    /// When somebody is due next: sleep until then. `None` before the first look.
    pub fn due(&self) -> Option<Instant> {
        self.0.iter().filter_map(|one| one.due).min()
    }

    /// What each told when it was looked at last, for the page.
    pub fn told(&self) -> impl Iterator<Item = (&'static str, &Facts)> {
        self.0.iter().map(|one| (one.source.name(), &one.told))
    }
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(from)?;
    seconds.map(Duration::try_from_secs_f64).transpose().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(seconds: u64) -> Facts {
        Facts { idle: Some(Duration::from_secs(seconds)), ..Facts::default() }
    }

    #[test]
    fn the_smallest_idle_time_is_the_truth() {
        assert_eq!(merge(&[idle(900), idle(3), Facts::default()]), idle(3));
    }

    #[test]
    fn an_idle_terminal_says_nothing_of_a_desktop_that_nobody_sees_into() {
        let (desktop, set) = fake::fake();
        let (terminals, terminals_set) = fake::fake();
        let mut watch = Watch::new(vec![Box::new(desktop), Box::new(Elsewhere(terminals))]);
        let start = Instant::now();
        terminals_set.set(idle(900));
        assert_eq!(watch.look(start).idle, None);
        set.set(idle(1000));
        assert_eq!(watch.look(start + fake::EVERY), idle(900));
        set.set(idle(3));
        assert_eq!(watch.look(start + fake::EVERY * 2), idle(3));
    }

    #[test]
    fn one_reason_against_lending_is_enough() {
        let no = Facts { vpn: Some(false), other_traffic: Some(10), ..Facts::default() };
        let yes = Facts { vpn: Some(true), other_traffic: Some(5), ..Facts::default() };
        let both = Facts { vpn: Some(true), other_traffic: Some(10), ..Facts::default() };
        assert_eq!(merge(&[no.clone(), yes.clone()]), both);
        assert_eq!(merge(&[yes, no]), both);
    }

    #[test]
    fn what_nobody_tells_stays_unknown() {
        assert_eq!(merge([]), Facts::default());
        let no = Facts { metered: Some(false), ..Facts::default() };
        assert_eq!(merge(&[Facts::default(), no.clone()]), no);
    }

    #[test]
    fn each_source_is_looked_at_in_its_own_pace() {
        let (source, set) = fake::fake();
        let mut watch = Watch::new(vec![Box::new(source)]);
        assert_eq!(watch.due(), None);
        let start = Instant::now();
        set.set(idle(1));
        assert_eq!(watch.look(start), idle(1));
        assert_eq!(watch.due(), Some(start + fake::EVERY));
        set.set(idle(2));
        assert_eq!(watch.look(start + fake::EVERY / 2), idle(1));
        assert_eq!(watch.look(start + fake::EVERY), idle(2));
        assert_eq!(watch.told().collect::<Vec<_>>(), [("test", &idle(2))]);
    }

    #[test]
    fn what_a_thread_that_hangs_saw_holds_no_more() {
        struct Hangs(std::sync::mpsc::Receiver<()>);
        impl Source for Hangs {
            fn name(&self) -> &'static str {
                "hangs"
            }
            fn every(&self) -> Duration {
                Duration::ZERO
            }
            fn look(&mut self) -> Facts {
                let _ = self.0.recv();
                idle(5)
            }
        }
        let (go_on, waits) = std::sync::mpsc::channel();
        let mut seen = watch(vec![Box::new(Hangs(waits))]);
        assert_eq!(seen.borrow_and_update().facts(Instant::now()), None);
        go_on.send(()).unwrap();
        let start = Instant::now();
        while !seen.has_changed().unwrap() {
            assert!(start.elapsed() < STALE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = Instant::now();
        assert_eq!(seen.borrow().facts(now), Some(&idle(5)));
        assert_eq!(seen.borrow().facts(now + STALE), None);
    }

    #[test]
    fn facts_are_read_from_json() {
        let facts: Facts = serde_json::from_str(r#"{"idle": 1.5, "vpn": true}"#).unwrap();
        assert_eq!(
            facts,
            Facts { idle: Some(Duration::from_millis(1500)), vpn: Some(true), ..Facts::default() }
        );
        assert!(serde_json::from_str::<Facts>(r#"{"idle": -1}"#).is_err());
        assert!(serde_json::from_str::<Facts>(r#"{"idel": 1}"#).is_err());
    }
}
