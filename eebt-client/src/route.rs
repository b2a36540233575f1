//! Which way a target is reached. A pure function.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What the person chose for all targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As the rules say; what no rule matches takes plain Tor first, and an exit bridge when the origin
    /// turns Tor away.
    #[default]
    Auto,
    /// Everything leaves through an exit bridge.
    Always,
    /// Nothing does: plain Tor.
    Never,
    /// As the rules say; what no rule matches takes plain Tor.
    Rules,
}

/// The way for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A Tor exit, or for `.onion` the onion service.
    Tor,
    /// An exit bridge.
    ExitBridge,
    /// A Tor exit first, and an exit bridge when the origin turns Tor away.
    Auto,
}

/// One rule: a pattern and a way. Written `PATTERN=exit-bridge`, `PATTERN=tor` or `PATTERN=auto`.
///
/// `example.com` matches that host; `*.example.com` matches it and all hosts below it, as in Tor's
/// `MapAddress`; `*` matches every host.
#[derive(Clone, PartialEq, Eq)]
pub struct Rule {
    pattern: Pattern,
    route: Route,
}

#[derive(Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    Host(String),
    Below(String),
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not of the form `PATTERN=WAY`.
    #[error("expected PATTERN=exit-bridge, PATTERN=tor or PATTERN=auto")]
    Form,
    /// There is no such way.
    #[error("{0:?} is not exit-bridge, tor or auto")]
    Way(String),
    /// The pattern can match no host.
    #[error("{0:?} is no host, no *.domain and no *")]
    Pattern(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (pattern, way) = text.rsplit_once('=').ok_or(RuleError::Form)?;
        let route = match way.trim() {
            "exit-bridge" => Route::ExitBridge,
            "tor" => Route::Tor,
            "auto" => Route::Auto,
            other => return Err(RuleError::Way(other.to_owned())),
        };
        let written = pattern.trim();
        let (below, host) = match written.strip_prefix("*.") {
            Some(domain) => (true, normal(domain)),
            None => (false, normal(written)),
        };
        let ok = !host.is_empty() && !host.contains(['*', '/', ' ', '@']) && !host.starts_with('.');
        let pattern = match (ok, below) {
            _ if written == "*" => Pattern::Any,
            (false, _) => return Err(RuleError::Pattern(written.to_owned())),
            (true, true) => Pattern::Below(host),
            (true, false) => Pattern::Host(host),
        };
        Ok(Self { pattern, route })
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[rule]")
    }
}

impl Rule {
    /// Its pattern in its one spelling, and the way.
    pub(crate) fn parts(&self) -> (String, Route) {
        let pattern = match &self.pattern {
            Pattern::Any => "*".to_owned(),
            Pattern::Host(host) => host.clone(),
            Pattern::Below(domain) => format!("*.{domain}"),
        };
        (pattern, self.route)
    }

    fn matches(&self, host: &str) -> bool {
        match &self.pattern {
            Pattern::Any => true,
            Pattern::Host(name) => host == name,
            Pattern::Below(domain) => {
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

/// One spelling for each host: lower case, no final dot, addresses in their canonical form.
pub(crate) fn normal(host: &str) -> String {
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => host.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// Is it an onion service? They are always reached as such: an exit bridge can't, and must not learn of it.
pub(crate) fn is_onion(host: &str) -> bool {
    let host = normal(host);
    host == "onion" || host.ends_with(".onion")
}

/// What the first rule that matches says about `host`.
pub(crate) fn ruled(rules: &[Rule], host: &str) -> Option<Route> {
    let host = normal(host);
    rules.iter().find(|rule| rule.matches(&host)).map(|rule| rule.route)
}

/// The way for `host`, a name or an address as the program gave it. The first rule that matches wins.
pub fn route(mode: Mode, rules: &[Rule], host: &str) -> Route {
    if is_onion(host) {
        return Route::Tor;
    }
    match mode {
        Mode::Auto => ruled(rules, host).unwrap_or(Route::Auto),
        Mode::Always => Route::ExitBridge,
        Mode::Never => Route::Tor,
        Mode::Rules => ruled(rules, host).unwrap_or(Route::Tor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_matching_rule_wins() {
        let rules = rules(&["open.example.com=tor", "*.example.com=exit-bridge", "198.51.100.7=exit-bridge"]);
        let way = |host| route(Mode::Rules, &rules, host);
        assert_eq!(way("open.example.com"), Route::Tor);
        assert_eq!(way("Shop.Example.COM."), Route::ExitBridge);
        assert_eq!(way("example.com"), Route::ExitBridge);
        assert_eq!(way("notexample.com"), Route::Tor);
        assert_eq!(way("198.51.100.7"), Route::ExitBridge);
        assert_eq!(way("example.org"), Route::Tor);
        assert_eq!(
            route(Mode::Rules, &self::rules(&["2001:db8::1=exit-bridge"]), "2001:db8:0::1"),
            Route::ExitBridge
        );
    }

    #[test]
    fn modes_decide_alone() {
        let rules = rules(&["*=exit-bridge"]);
        assert_eq!(route(Mode::Always, &[], "example.com"), Route::ExitBridge);
        assert_eq!(route(Mode::Never, &rules, "example.com"), Route::Tor);
        assert_eq!(route(Mode::Rules, &rules, "example.com"), Route::ExitBridge);
        assert_eq!(route(Mode::Auto, &rules, "example.com"), Route::ExitBridge);
        assert_eq!(route(Mode::Auto, &[], "example.com"), Route::Auto);
        assert_eq!(route(Mode::Rules, &self::rules(&["*=auto"]), "example.com"), Route::Auto);
    }

    #[test]
    fn onion_services_never_go_through_an_exit_bridge() {
        for host in ["abc.onion", "ABC.Onion.", "www.abc.onion"] {
            for mode in [Mode::Always, Mode::Auto, Mode::Rules] {
                assert_eq!(route(mode, &rules(&["*=exit-bridge"]), host), Route::Tor, "{host}");
            }
        }
    }

    #[test]
    fn bad_rules_are_refused() {
        for bad in
            ["example.com", "example.com=direct", "=tor", "*.=tor", "a.*.b=tor", "*x=tor", "http://x=tor"]
        {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
