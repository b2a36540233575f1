//! Sets of ports, as an exit policy and a bridge line write them.

use std::fmt;
use std::str::FromStr;

/// A set of TCP ports. Written as a comma-separated list of ports and ranges (`80,443,8000-8100`),
/// or read from the name of a preset (`web`, `reduced`, `tor-default`).
///
/// Kept sorted and merged, so that equal sets are equal values. Port 0 is never in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortSet(Vec<(u16, u16)>);

/// Why a text is no [`PortSet`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Nothing was given.
    #[error("the list of ports is empty")]
    Empty,
    /// One entry is no port, no range and no preset.
    #[error(
        "{0:?} is no port from 1 to 65535, no range like 8000-8100, and no preset (web, reduced, tor-default)"
    )]
    Entry(String),
}

impl PortSet {
    /// Ports 80 and 443: what nearly all browsing needs, and the default.
    pub fn web() -> Self {
        Self(vec![(80, 80), (443, 443)])
    }

    /// The ports of C tor's `ReducedExitPolicy`, less those that carry mail to other servers.
    pub fn reduced() -> Self {
        const PORTS: &[(u16, u16)] = &[
            (20, 23),
            (43, 43),
            (53, 53),
            (79, 81),
            (88, 88),
            (110, 110),
            (143, 143),
            (194, 194),
            (220, 220),
            (389, 389),
            (443, 443),
            (464, 464),
            (531, 531),
            (543, 544),
            (554, 554),
            (563, 563),
            (636, 636),
            (706, 706),
            (749, 749),
            (853, 853),
            (873, 873),
            (902, 904),
            (981, 981),
            (989, 995),
            (1194, 1194),
            (1220, 1220),
            (1293, 1293),
            (1500, 1500),
            (1533, 1533),
            (1677, 1677),
            (1723, 1723),
            (1755, 1755),
            (1863, 1863),
            (2082, 2083),
            (2086, 2087),
            (2095, 2096),
            (2102, 2104),
            (3128, 3128),
            (3389, 3389),
            (3690, 3690),
            (4321, 4321),
            (4643, 4643),
            (5050, 5050),
            (5190, 5190),
            (5222, 5223),
            (5228, 5228),
            (5900, 5900),
            (6660, 6669),
            (6679, 6679),
            (6697, 6697),
            (8000, 8000),
            (8008, 8008),
            (8074, 8074),
            (8080, 8080),
            (8082, 8082),
            (8087, 8088),
            (8232, 8233),
            (8332, 8333),
            (8443, 8443),
            (8888, 8888),
            (9418, 9418),
            (9999, 10000),
            (11371, 11371),
            (19294, 19294),
            (19638, 19638),
            (50002, 50002),
            (64738, 64738),
        ];
        Self::merged(PORTS.to_vec())
    }

    /// All ports but those that C tor's default exit policy rejects (mail between servers, news,
    /// Windows file sharing, old file-sharing networks), and but 465 and 587 (mail submission).
    pub fn tor_default() -> Self {
        const REJECTED: &[(u16, u16)] = &[
            (25, 25),
            (119, 119),
            (135, 139),
            (445, 445),
            (465, 465),
            (563, 563),
            (587, 587),
            (1214, 1214),
            (4661, 4666),
            (6346, 6429),
            (6699, 6699),
            (6881, 6999),
        ];
        let mut allowed = Vec::new();
        let mut next = 1;
        for &(low, high) in REJECTED {
            allowed.push((next, low - 1));
            next = high + 1;
        }
        allowed.push((next, u16::MAX));
        Self(allowed)
    }

    /// Is `port` in the set?
    pub fn contains(&self, port: u16) -> bool {
        let at = self.0.partition_point(|&(low, _)| low <= port);
        at.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|&(_, high)| port <= high)
    }

    /// Sorts ranges and joins those that touch.
    fn merged(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut out: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match out.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => out.push((low, high)),
            }
        }
        Self(out)
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::web()
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    fn from_str(text: &str) -> Result<Self, PortSetError> {
        match text.trim() {
            "" => return Err(PortSetError::Empty),
            "web" => return Ok(Self::web()),
            "reduced" => return Ok(Self::reduced()),
            "tor-default" => return Ok(Self::tor_default()),
            _ => {}
        }
        let ranges = text
            .split(',')
            .map(|entry| {
                let entry = entry.trim();
                let (low, high) = entry.split_once('-').unwrap_or((entry, entry));
                match (port(low), port(high)) {
                    (Some(low), Some(high)) if low <= high => Ok((low, high)),
                    _ => Err(PortSetError::Entry(entry.to_owned())),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::merged(ranges))
    }
}

/// A port from 1 to 65535 in plain digits (`+80` and `080` are typing errors, not ports).
fn port(text: &str) -> Option<u16> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn web_is_80_and_443_only() {
        let web = PortSet::default();
        let open: Vec<u16> = (0..=u16::MAX).filter(|&p| web.contains(p)).collect();
        assert_eq!(open, [80, 443]);
        assert_eq!(web.to_string(), "80,443");
    }

    #[test]
    fn mail_between_servers_is_in_no_preset() {
        for name in ["web", "reduced", "tor-default"] {
            let set: PortSet = name.parse().unwrap();
            assert!(!set.contains(25) && !set.contains(465) && !set.contains(587), "{name}");
            assert!(set.contains(80) && set.contains(443) && !set.contains(0), "{name}");
        }
        assert!(PortSet::tor_default().contains(65535));
        assert!(!PortSet::tor_default().contains(6881));
    }

    #[test]
    fn overlapping_ranges_become_one() {
        let set: PortSet = "443, 80-90,85-100,101".parse().unwrap();
        assert_eq!(set.to_string(), "80-101,443");
    }

    #[test]
    fn bad_entries_are_named() {
        for bad in ["0", "65536", "90-80", "http", "80,,443", "+80", "080", "80-", "1-2-3", "-"] {
            let error = bad.parse::<PortSet>().unwrap_err();
            assert!(matches!(error, PortSetError::Entry(_)), "{bad}: {error}");
        }
        assert_eq!(" ".parse::<PortSet>(), Err(PortSetError::Empty));
    }

    proptest! {
        #[test]
        fn text_and_set_round_trip(
            ranges in prop::collection::vec((1u16.., 0u16..2000), 1..20),
            probe: u16,
        ) {
            let ranges: Vec<(u16, u16)> =
                ranges.into_iter().map(|(low, n)| (low, low.saturating_add(n))).collect();
            let set = PortSet::merged(ranges.clone());
            prop_assert_eq!(&set.to_string().parse::<PortSet>().unwrap(), &set);
            let inside = ranges.iter().any(|&(low, high)| (low..=high).contains(&probe));
            prop_assert_eq!(set.contains(probe), inside);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<PortSet>();
        }
    }
}
