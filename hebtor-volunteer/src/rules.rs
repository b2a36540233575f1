//! Serve now, or rest, and why: a pure function of what the owner chose, what is known of the machine, and the time.

use std::fmt;
use std::time::Duration;

use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::settings::{Settings, Switch};
use crate::sources::Facts;
use crate::usage::Cap;

/// How long the line must have been quiet after others used it.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Serve.
    Serve,
    /// Rest.
    Rest(Reason),
}

/// Why it rests. Its `Display` is for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The owner has not agreed yet.
    NoConsent,
    /// Switched off.
    Off,
    /// Paused by the owner, until this time.
    Paused(Timestamp),
    /// The address is on a list of those that sites refuse.
    Listed,
    /// As much as the owner allows for a day, or a month.
    Cap(Cap),
    /// What it carries can't be written down, so that caps would not hold after a crash.
    Unwritten,
    /// Nobody can look at the machine: whoever does it hangs.
    Blind,
    /// Not at this hour.
    Hours,
    /// On battery.
    Battery,
    /// On a line that the owner did not agree for.
    OtherLine,
    /// Behind a page that wants a log-in.
    CaptivePortal,
    /// A VPN is in the way.
    Vpn,
    /// The line is metered.
    Metered,
    /// Somebody is at the machine.
    InUse,
    /// Nobody can tell whether somebody is at the machine.
    IdleUnknown,
    /// A program fills the screen.
    FullScreen,
    /// The line is busy with other things.
    OtherTraffic,
}

impl Reason {
    /// Is nothing to be sent at all, or not over this line?
    pub fn is_about_the_line(self) -> bool {
        matches!(
            self,
            Self::NoConsent
                | Self::Off
                | Self::Paused(_)
                | Self::Blind
                | Self::OtherLine
                | Self::Battery
                | Self::CaptivePortal
                | Self::Vpn
                | Self::Metered
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoConsent => "you have not agreed yet",
            Self::Off => "you switched it off",
            Self::Paused(_) => "you paused it",
            Self::Listed => "your address is on a list of addresses that sites refuse",
            Self::Cap(Cap::Day) => "it has carried as much as you allow for a day",
            Self::Cap(Cap::Month) => "it has carried as much as you allow for a month",
            Self::Unwritten => "it can't write down what it carries; is the disk full?",
            Self::Blind => "it can't look at this computer; if that stays so, end it and start it again",
            Self::Hours => "you chose other hours",
            Self::Battery => "on battery",
            Self::OtherLine => "this is another line than the one you agreed for",
            Self::CaptivePortal => "this network wants a log-in first",
            Self::Vpn => "a VPN is on, and its address is not yours to lend",
            Self::Metered => "this line is metered",
            Self::InUse => "you are using the computer",
            Self::IdleUnknown => "it can't tell whether you are using the computer",
            Self::FullScreen => "a program fills the screen",
            Self::OtherTraffic => "the line is busy with your own things",
        })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serve => f.write_str("serving"),
            Self::Rest(reason @ (Reason::NoConsent | Reason::Off)) => write!(f, "off: {reason}"),
            Self::Rest(reason) => write!(f, "paused: {reason}"),
        }
    }
}

/// What else it depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// The cap that is reached.
    pub cap: Option<Cap>,
    /// The address is listed.
    pub listed: bool,
    /// What it carries can't be written down.
    pub unwritten: bool,
    /// Nobody can look at the machine.
    pub blind: bool,
}

/// Decides, and remembers when the line was last busy.
#[derive(Debug, Default)]
pub struct Governor {
    busy_at: Option<Timestamp>,
}

impl Governor {
    /// What is to be done at this time. What the owner wants comes first, then what can't be helped, then the machine.
    pub fn decide(
        &mut self,
        settings: &Settings,
        facts: &Facts,
        standing: Standing,
        now: &Zoned,
    ) -> Decision {
        let (rules, at) = (&settings.rules, now.timestamp());
        let idle_for = rules.idle_minutes.map(|minutes| Duration::from_secs(u64::from(minutes) * 60));
        // No minute of a day is 1440.
        #[allow(clippy::cast_sign_loss)]
        let minute = now.hour() as u16 * 60 + now.minute() as u16;
        let reason = match settings.switch {
            _ if !settings.agreed() => Some(Reason::NoConsent),
            Switch::Off => Some(Reason::Off),
            Switch::Paused(until) if at < until => Some(Reason::Paused(until)),
            _ if standing.listed => Some(Reason::Listed),
            _ if standing.unwritten => Some(Reason::Unwritten),
            _ => standing.cap.map(Reason::Cap).or(standing.blind.then_some(Reason::Blind)),
        };
        let busy = self.is_line_busy(rules.other_traffic_kbs, facts, at);
        let yes = |rule: bool, fact: Option<bool>| rule && fact == Some(true);
        let rest = [
            (rules.hours.is_some_and(|hours| !hours.contain(minute)), Reason::Hours),
            (yes(rules.battery, facts.on_battery), Reason::Battery),
            (rules.known_line && !settings.is_for(facts.line.as_deref()), Reason::OtherLine),
            (yes(rules.captive_portal, facts.captive_portal), Reason::CaptivePortal),
            (yes(rules.vpn, facts.vpn), Reason::Vpn),
            (yes(rules.metered, facts.metered), Reason::Metered),
            (idle_for.is_some() && facts.idle.is_none(), Reason::IdleUnknown),
            (idle_for.is_some_and(|long| facts.idle.is_some_and(|idle| idle < long)), Reason::InUse),
            (yes(rules.full_screen, facts.full_screen), Reason::FullScreen),
            (busy, Reason::OtherTraffic),
        ];
        let reason = reason.or_else(|| rest.into_iter().find_map(|(holds, reason)| holds.then_some(reason)));
        reason.map_or(Decision::Serve, Decision::Rest)
    }

    fn is_line_busy(&mut self, limit: Option<u32>, facts: &Facts, at: Timestamp) -> bool {
        let Some(limit) = limit else { return false };
        if facts.other_traffic.is_some_and(|bytes| bytes > u64::from(limit) * 1000) {
            self.busy_at = Some(at);
        }
        let since = self.busy_at.map(|busy| at.duration_since(busy).unsigned_abs());
        since.is_some_and(|since| since < QUIET_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{CONSENT, Consent, Hours};

    fn at(text: &str) -> Zoned {
        format!("{text}[UTC]").parse().unwrap()
    }

    fn agreed() -> Settings {
        let consent = Some(Consent { at: Timestamp::UNIX_EPOCH, version: CONSENT });
        Settings { consent, ..Settings::default() }
    }

    fn idle() -> Facts {
        Facts { idle: Some(Duration::from_secs(600)), ..Facts::default() }
    }

    fn decide(settings: &Settings, facts: &Facts) -> Decision {
        Governor::default().decide(settings, facts, Standing::default(), &at("2026-11-27T03:00:00Z"))
    }

    #[test]
    fn nothing_serves_without_consent_whatever_else_holds() {
        assert_eq!(decide(&Settings::default(), &idle()), Decision::Rest(Reason::NoConsent));
        assert_eq!(decide(&agreed(), &idle()), Decision::Serve);
        let off = Settings { switch: Switch::Off, ..agreed() };
        assert_eq!(decide(&off, &idle()).to_string(), "off: you switched it off");
    }

    #[test]
    fn each_rule_rests_and_can_be_switched_off() {
        let yes = Some(true);
        type Off = fn(&mut Settings);
        let cases: [(Facts, Reason, Off); 7] = [
            (Facts { on_battery: yes, ..idle() }, Reason::Battery, |s| s.rules.battery = false),
            (Facts { metered: yes, ..idle() }, Reason::Metered, |s| s.rules.metered = false),
            (Facts { vpn: yes, ..idle() }, Reason::Vpn, |s| s.rules.vpn = false),
            (Facts { captive_portal: yes, ..idle() }, Reason::CaptivePortal, |s| {
                s.rules.captive_portal = false
            }),
            (Facts { full_screen: yes, ..idle() }, Reason::FullScreen, |s| s.rules.full_screen = false),
            (Facts { idle: Some(Duration::from_secs(299)), ..idle() }, Reason::InUse, |s| {
                s.rules.idle_minutes = None
            }),
            (Facts { other_traffic: Some(500_001), ..idle() }, Reason::OtherTraffic, |s| {
                s.rules.other_traffic_kbs = None;
            }),
        ];
        for (facts, reason, off) in cases {
            let mut settings = agreed();
            assert_eq!(decide(&settings, &facts), Decision::Rest(reason));
            off(&mut settings);
            assert_eq!(decide(&settings, &facts), Decision::Serve, "{reason}");
        }
        let mut settings = agreed();
        settings.rules.hours = Some(Hours { from: 240, to: 300 });
        assert_eq!(decide(&settings, &idle()), Decision::Rest(Reason::Hours));
    }

    #[test]
    fn what_was_agreed_for_one_line_holds_for_no_other() {
        let at = |line: Option<&str>| Facts { line: line.map(String::from), ..idle() };
        let mut settings = agreed();
        assert_eq!(decide(&settings, &at(Some("a"))), Decision::Serve, "it was not known then");
        settings.lines = vec!["a".into(), "b".into()];
        assert_eq!(decide(&settings, &at(Some("b"))), Decision::Serve);
        assert_eq!(decide(&settings, &at(Some("c"))), Decision::Rest(Reason::OtherLine));
        assert_eq!(decide(&settings, &at(None)), Decision::Serve);
        settings.rules.known_line = false;
        assert_eq!(decide(&settings, &at(Some("c"))), Decision::Serve);
    }

    #[test]
    fn who_cannot_tell_whether_somebody_is_there_rests() {
        assert_eq!(decide(&agreed(), &Facts::default()), Decision::Rest(Reason::IdleUnknown));
        let mut server = agreed();
        server.rules.idle_minutes = None;
        assert_eq!(decide(&server, &Facts::default()), Decision::Serve);
    }

    #[test]
    fn a_busy_line_is_left_alone_for_a_while() {
        let (mut governor, settings) = (Governor::default(), agreed());
        let mut decide = |second: u32, bytes| {
            let facts = Facts { other_traffic: Some(bytes), ..idle() };
            let now = at(&format!("2026-11-27T03:00:{second:02}Z"));
            governor.decide(&settings, &facts, Standing::default(), &now)
        };
        assert_eq!(decide(0, 900_000), Decision::Rest(Reason::OtherTraffic));
        assert_eq!(decide(59, 0), Decision::Rest(Reason::OtherTraffic));
        let later = at("2026-11-27T03:01:00Z");
        assert_eq!(governor.decide(&settings, &idle(), Standing::default(), &later), Decision::Serve);
    }

    #[test]
    fn a_pause_ends_by_itself_and_caps_and_lists_hold() {
        let now = at("2026-11-27T03:00:00Z");
        let until = now.timestamp() + Duration::from_secs(1);
        let paused = Settings { switch: Switch::Paused(until), ..agreed() };
        let decide = |standing, now: &Zoned| Governor::default().decide(&paused, &idle(), standing, now);
        assert_eq!(decide(Standing::default(), &now), Decision::Rest(Reason::Paused(until)));
        let later = now.saturating_add(Duration::from_secs(1));
        assert_eq!(decide(Standing::default(), &later), Decision::Serve);
        let capped = Standing { cap: Some(Cap::Day), ..Standing::default() };
        assert_eq!(decide(capped, &later), Decision::Rest(Reason::Cap(Cap::Day)));
        let listed = Standing { listed: true, ..Standing::default() };
        assert_eq!(decide(listed, &later), Decision::Rest(Reason::Listed));
        let unwritten = Standing { unwritten: true, ..Standing::default() };
        assert_eq!(decide(unwritten, &later), Decision::Rest(Reason::Unwritten));
    }
}
