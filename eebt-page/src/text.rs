//! Numbers and hosts as people read them.

use std::time::Duration;

/// A host as it can be shown: what is no plain letter stands there as its number, so that it can't pass for
/// another one.
pub fn plain(host: &str) -> String {
    host.chars()
        .map(|c| if c.is_ascii_graphic() { c.to_string() } else { c.escape_unicode().to_string() })
        .collect()
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut amount = n as f64 / 1000.0;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    if amount < 9.95 {
        format!("{amount:.1} {}", UNITS[unit])
    } else {
        format!("{amount:.0} {}", UNITS[unit])
    }
}

/// A length of time for people.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_960, "10 kB"),
            (999_499, "999 kB"),
            (999_600, "1.0 MB"),
            (1_234_567, "1.2 MB"),
            (200_000_000_000, "200 GB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (s, text) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(span(Duration::from_secs(s)), text);
        }
    }

    #[test]
    fn a_host_cannot_pass_for_another() {
        assert_eq!(plain("example.com"), "example.com");
        assert_eq!(plain("moc.elp\u{202e}maxe"), "moc.elp\\u{202e}maxe");
        assert_eq!(plain("a b\n"), "a\\u{20}b\\u{a}");
    }
}
