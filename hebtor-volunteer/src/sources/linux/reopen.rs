//! A source that has to be opened, and may break: it is opened again, in growing pauses.

use std::time::{Duration, Instant};

use super::{Facts, Source};

/// Why a source can't be opened, or tells nothing more. Only for the log.
pub(super) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// What is open: a connection to a bus or a display.
pub(super) trait Open: Send {
    /// What it can tell. After an error it is dropped and opened anew.
    fn facts(&mut self) -> Result<Facts, Broken>;
}

/// The first pause after something broke; doubled each time that it breaks again.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// While the owner is here nothing is lent, so that nobody has to be quick: one who was here so lately is
/// looked for again after that time.
const HERE: Duration = Duration::from_secs(5);

/// Opens with `open`, asks what is open, and opens again.
pub(super) struct Reopened<F, T> {
    name: &'static str,
    every: Duration,
    open: F,
    now_open: Option<T>,
    owner_is_here: bool,
    pause: Duration,
    not_before: Option<Instant>,
}

impl<F: FnMut() -> Result<T, Broken>, T: Open> Reopened<F, T> {
    /// Nothing is opened before the first look.
    pub(super) fn new(name: &'static str, every: Duration, open: F) -> Self {
        Self { name, every, open, now_open: None, owner_is_here: false, pause: FIRST_PAUSE, not_before: None }
    }

    fn look_at(&mut self, now: Instant) -> Facts {
        let facts = self.open_and_ask(now);
        self.owner_is_here = facts.idle.is_some_and(|idle| idle < HERE);
        facts
    }

    fn open_and_ask(&mut self, now: Instant) -> Facts {
        if self.not_before.is_some_and(|then| now < then) {
            return Facts::default();
        }
        match self.ask() {
            Ok(facts) => {
                self.pause = FIRST_PAUSE;
                self.not_before = None;
                facts
            }
            Err(error) => {
                tracing::debug!(source = self.name, %error, pause = ?self.pause, "can tell nothing");
                self.now_open = None;
                self.not_before = Some(now + self.pause);
                self.pause = LAST_PAUSE.min(self.pause * 2);
                Facts::default()
            }
        }
    }

    fn ask(&mut self) -> Result<Facts, Broken> {
        let open = match self.now_open.take() {
            Some(open) => open,
            None => (self.open)()?,
        };
        self.now_open.insert(open).facts()
    }
}

impl<F: FnMut() -> Result<T, Broken> + Send, T: Open> Source for Reopened<F, T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn every(&self) -> Duration {
        if self.owner_is_here { self.every.max(HERE) } else { self.every }
    }

    fn look(&mut self) -> Facts {
        self.look_at(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    struct Server(Arc<AtomicBool>);

    impl Open for Server {
        fn facts(&mut self) -> Result<Facts, Broken> {
            if self.0.load(Ordering::Relaxed) { Ok(up()) } else { Err("it is gone".into()) }
        }
    }

    fn up() -> Facts {
        Facts { vpn: Some(false), ..Facts::default() }
    }

    struct Owner(Duration);

    impl Open for Owner {
        fn facts(&mut self) -> Result<Facts, Broken> {
            self.0 += Duration::from_secs(2);
            Ok(Facts { idle: Some(self.0), ..Facts::default() })
        }
    }

    #[test]
    fn an_owner_who_left_is_watched_closely() {
        let mut source = Reopened::new("owner", Duration::from_secs(1), || Ok(Owner(Duration::ZERO)));
        let paces = [(); 4].map(|()| {
            source.look();
            source.every().as_secs()
        });
        assert_eq!(paces, [5, 5, 1, 1]);
    }

    #[test]
    fn what_broke_is_opened_again_in_growing_pauses() {
        let works = Arc::new(AtomicBool::new(true));
        let opened = Arc::new(AtomicU32::new(0));
        let (server, count) = (works.clone(), opened.clone());
        let mut source = Reopened::new("server", Duration::from_secs(1), move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Server(server.clone()))
        });
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        assert_eq!((source.look_at(at(0)), source.look_at(at(1))), (up(), up()));
        assert_eq!(opened.load(Ordering::Relaxed), 1);

        works.store(false, Ordering::Relaxed);
        for second in 10..310 {
            assert_eq!(source.look_at(at(second)), Facts::default());
        }
        // After 2, 4, 8, 16 and 32 seconds, then each minute.
        assert_eq!(opened.load(Ordering::Relaxed), 1 + 5 + 3);

        works.store(true, Ordering::Relaxed);
        assert_eq!(source.look_at(at(400)), up());
        works.store(false, Ordering::Relaxed);
        assert_eq!(source.look_at(at(401)), Facts::default());
        works.store(true, Ordering::Relaxed);
        assert_eq!(source.look_at(at(402)), Facts::default());
        assert_eq!(source.look_at(at(403)), up());
    }
}
