//! What is said to an exit-bridge directory, and what it answers: JSON in the bodies of HTTP requests.
//! The requests are in `docs/protocol.md` and, for programs, in `docs/exit-bridge-directory.openapi.json`.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::country::Country;
use crate::line::BridgeLine;
use crate::reach::Reach;
use crate::ticket::Ticket;

/// Where an exit bridge registers and renews: POST, a `SignedDocument` with a descriptor; the answer
/// is a [`Registered`].
pub const DESCRIPTORS: &str = "/v1/descriptors";

/// Where it withdraws: POST, a `SignedDocument` with a withdrawal; the answer has no body.
pub const WITHDRAWALS: &str = "/v1/withdrawals";

/// Where it asks for the directory's word that it serves: POST, a `SignedDocument` with an attestation request; the
/// answer is a `SignedDocument` with an attestation.
pub const ATTESTATIONS: &str = "/v1/attestations";

/// Where a client learns what a ticket costs: GET; the answer is a `TicketTerms`.
pub const TICKET_TERMS: &str = "/v1/ticket-terms";

/// Where a client asks for exit bridges: POST, a [`Ask`]; the answer is a [`HandOut`].
pub const EXIT_BRIDGES: &str = "/v1/exit-bridges";

/// Where a client says that an exit bridge does not work: POST, a [`Report`]; the answer has no body.
pub const REPORTS: &str = "/v1/reports";

/// How far the exit-bridge directory has come with an exit bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Not tested yet.
    Waiting,
    /// It passed its tests. Who is given it is the directory's secret.
    Serving,
    /// It could not be reached, or could not reach the directory's echo.
    Unreachable,
    /// Its egress address is that of a Tor relay: those who block Tor block it too.
    EgressIsTorRelay,
    /// Its egress address is private or otherwise special.
    EgressIsSpecial,
    /// Another exit bridge has the same egress address.
    EgressIsShared,
}

/// The answer to a descriptor that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// What the tests have said so far.
    pub standing: Standing,
    /// When to send the next descriptor, at the latest.
    #[serde(with = "crate::wire::time")]
    pub renew_before: SystemTime,
    /// Where its tests go to, at most [`MAX_ECHOES`](crate::limits::MAX_ECHOES). An exit bridge whose owner chose hosts lets them out all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub echoes: Vec<SocketAddr>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Its ticket.
    #[serde(deserialize_with = "crate::wire::object")]
    pub ticket: Ticket,
    /// What the exit bridges should be like.
    #[serde(default, deserialize_with = "crate::wire::object")]
    pub wishes: Wishes,
}

/// What exit bridges should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// A port that they let out; 443 when not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where their egress addresses are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// How they are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachName>,
}

/// The name of a reach, as in a bridge line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReachName {
    /// A circuit is extended to it.
    Circuit,
    /// It is an onion service.
    Onion,
}

impl From<&Reach> for ReachName {
    fn from(reach: &Reach) -> Self {
        match reach {
            Reach::Circuit(_) => Self::Circuit,
            Reach::Onion(_) => Self::Onion,
        }
    }
}

/// The answer to a client: 0 to [`MAX_HANDED_OUT`](crate::limits::MAX_HANDED_OUT) exit bridges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOut {
    /// The exit bridges, the one to use first in front.
    pub exit_bridges: Vec<HandedOut>,
    /// Until when to use them; then ask again.
    #[serde(with = "crate::wire::time")]
    pub lease_until: SystemTime,
}

/// One exit bridge that was given to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOut {
    /// How to reach it.
    #[serde(with = "crate::wire::text")]
    pub bridge_line: BridgeLine,
    /// Where its egress address is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// How fast it was when it was tested.
    pub speed: Speed,
}

/// Classes of throughput, coarse so that they tell no two exit bridges apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    /// Under 1 Mbit/s.
    Slow,
    /// 1 to 10 Mbit/s.
    Medium,
    /// 10 Mbit/s and more.
    Fast,
}

impl Speed {
    /// The class of a measured throughput, in bytes per second.
    pub fn of(bytes_per_second: f64) -> Self {
        match bytes_per_second * 8.0 / 1e6 {
            ..1.0 => Self::Slow,
            1.0..10.0 => Self::Medium,
            _ => Self::Fast,
        }
    }
}

/// A client's word that an exit bridge does not work. A hint: it is tested sooner, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The client's ticket. Only exit bridges that were given for it can be reported.
    #[serde(deserialize_with = "crate::wire::object")]
    pub ticket: Ticket,
    /// The identity of the exit bridge.
    #[serde(with = "crate::wire::bytes")]
    pub identity: [u8; 32],
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// A name for programs.
    pub code: String,
    /// For people; names the field.
    pub message: String,
    /// What to try.
    #[serde(default)]
    pub hint: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_have_classes() {
        assert_eq!(Speed::of(0.0), Speed::Slow);
        assert_eq!(Speed::of(125_000.0), Speed::Medium);
        assert_eq!(Speed::of(1_250_000.0), Speed::Fast);
    }

    #[test]
    fn wishes_with_a_slip_are_refused() {
        let wishes = |text| serde_json::from_str::<Wishes>(text);
        assert_eq!(wishes("{}").unwrap(), Wishes::default());
        let all = wishes(r#"{"port":80,"country":"se","reach":"onion"}"#).unwrap();
        assert_eq!(serde_json::to_string(&all).unwrap(), r#"{"port":80,"country":"SE","reach":"onion"}"#);
        for bad in
            [r#"{"contry":"se"}"#, r#"{"country":"sweden"}"#, r#"{"reach":"both"}"#, r#"{"port":70000}"#]
        {
            assert!(wishes(bad).is_err(), "{bad}");
        }
    }
}
