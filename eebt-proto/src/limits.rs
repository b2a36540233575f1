//! Bounds that every role holds to, whatever its configuration says.

use std::time::Duration;

/// Longest bridge line that is read, in bytes.
pub const MAX_LINE_LEN: usize = 2048;

/// Most addresses in one bridge line (one of each family, and some to spare).
pub const MAX_ADDRESSES: usize = 4;

/// Longest host name in a target, in bytes (RFC 1035, section 2.3.4, without the final dot).
pub const MAX_HOST_LEN: usize = 253;

/// Longest label in a host name, in bytes (RFC 1035, section 2.3.4).
pub const MAX_LABEL_LEN: usize = 63;

/// Longest life of an exit bridge. It is short-lived by definition.
pub const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest signed document that an exit-bridge directory reads, in bytes, before base64.
pub const MAX_DOCUMENT_LEN: usize = 4096;

/// Longest time that a descriptor is valid.
pub const MAX_VALIDITY: Duration = Duration::from_secs(3 * 3600);

/// How far the clock of whoever signs may be ahead of the clock of whoever reads.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Most exit bridges in one answer of an exit-bridge directory.
pub const MAX_HANDED_OUT: usize = 3;

/// Longest name of a program and its version in a descriptor, in bytes.
pub const MAX_SOFTWARE_LEN: usize = 64;

/// Longest time between two sights of an exit bridge in one attestation. Exit bridges renew after 90 minutes at the
/// latest.
pub const MAX_ATTESTATION_GAP: Duration = Duration::from_secs(2 * 3600);

/// Most addresses that a directory's tests go to.
pub const MAX_ECHOES: usize = 16;
