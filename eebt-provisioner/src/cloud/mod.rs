//! Clouds: machines that cost money, bought one for each exit bridge.
//!
//! What may go wrong with a purchase is decided once for all clouds, in `saga.rs`: an order is given once
//! ([`Cloud::create`]), and what became of one whose answer was lost is found out ([`Cloud::find`]).

mod aws;
mod coming;
pub mod cost;
mod digitalocean;
mod hetzner;
mod reconcile;
mod rest;
mod saga;
pub mod user_data;

use std::collections::HashSet;
use std::fmt;
use std::iter::Sum;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::SystemTime;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::fleet::FleetError;
use crate::instance::Provider;

pub use coming::Come;
pub use saga::{BuyError, Offers, Wanted};

/// Most machines of one purchase.
pub const MAX_COUNT: u16 = 1000;

/// Money, in millionths of a US dollar: of an hour of a machine, or a sum of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicroUsd(pub u64);

impl MicroUsd {
    /// In dollars, exactly and without a unit: `0.010400`.
    pub fn plain(self) -> String {
        format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }

    /// For this many seconds at this price for an hour, rounded up.
    pub fn for_seconds(self, seconds: u64) -> Self {
        let sum = (u128::from(self.0) * u128::from(seconds)).div_ceil(3600);
        Self(u64::try_from(sum).unwrap_or(u64::MAX))
    }
}

impl Sum for MicroUsd {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        Self(all.fold(0, |sum, part| sum.saturating_add(part.0)))
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: a plan must not look cheaper than it is.
        let (dollars, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let hundredths = rest.div_ceil(100);
        write!(f, "{}.{:04} USD", dollars + hundredths / 10_000, hundredths % 10_000)
    }
}

impl FromStr for MicroUsd {
    type Err = String;

    /// Dollars as clouds and people write them: `0.0104`, `20`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an amount in US dollars such as 0.0104 or 20");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(wrong());
        }
        // What is below a millionth counts as one.
        let up = u64::from(fraction.bytes().skip(6).any(|b| b != b'0'));
        let millionths = format!("{:0<6.6}", fraction).parse::<u64>().map_err(|_| wrong())?;
        let whole = whole.parse::<u64>().map_err(|_| wrong())?;
        let sum = whole.checked_mul(1_000_000).and_then(|sum| sum.checked_add(millionths + up));
        sum.map(Self).ok_or_else(wrong)
    }
}

/// What is looked for in a region.
#[derive(Clone, Debug)]
pub struct Query {
    /// What the cloud calls it, such as `t3.nano`: any of them will do. None: any small one.
    pub kinds: Vec<String>,
    /// Processors, as in `uname -m`: those that the program was built for.
    pub arch: String,
    /// A system image; the newest Debian if `None`.
    pub image: Option<String>,
    /// Not spot, but for good, at this price for an hour (the cloud's API does not tell it).
    pub on_demand: Option<MicroUsd>,
}

/// A kind of machine in a place, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What the cloud calls it, such as `t4g.nano`.
    pub kind: String,
    /// Where in the region: a zone, or empty where a cloud has none.
    pub zone: String,
    /// For one hour, at most: what is bid where there is an auction.
    pub price: MicroUsd,
    /// Is that a bid?
    pub is_spot: bool,
    /// For one hour, what comes with it: a public address, a disk.
    pub besides: MicroUsd,
    /// For a GB (10^9 bytes) that leaves it, at most.
    pub traffic: MicroUsd,
    /// Does it get an IPv6 address as well?
    pub has_ipv6: bool,
    /// The system image that fits it.
    pub image: String,
}

impl Offer {
    /// All that one hour costs, traffic excepted.
    pub fn per_hour(&self) -> MicroUsd {
        MicroUsd(self.price.0.saturating_add(self.besides.0))
    }
}

/// One purchase, whole: said again it must be the same to the last byte, so it is kept in the folder of its instance.
/// No `Debug`: `user_data` has keys in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// From whom.
    pub provider: Provider,
    /// Names the order, and no other one.
    pub token: String,
    /// When it is given.
    pub given: SystemTime,
    /// The region.
    pub region: String,
    /// What is bought.
    pub offer: Offer,
    /// The one port that is let in.
    pub port: u16,
    /// Who may log in: the cloud's name for a key. Nobody if `None`.
    pub ssh_key: Option<String>,
    /// What the machine is told at its first start.
    pub user_data: String,
    /// Marks of the machine.
    pub tags: Tags,
}

/// By which a machine is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// Whose it is.
    pub fleet: String,
    /// Which instance it is.
    pub id: String,
    /// The `eebt up` that bought it.
    pub attempt: String,
    /// When it ends by itself.
    pub expires: SystemTime,
    /// What an hour costs at most, and all traffic that it may carry: for a ledger that is lost.
    pub cost: Cost,
}

/// How a tag has a time.
const TAG_TIME: &str = "%Y%m%dT%H%M%SZ";

impl Tags {
    /// As names and values. These have letters, digits and dashes alone, for some clouds take nothing else.
    fn pairs(&self) -> [(&'static str, String); 5] {
        [
            ("fleet", self.fleet.clone()),
            ("id", self.id.clone()),
            ("attempt", self.attempt.clone()),
            ("expires", DateTime::<Utc>::from(self.expires).format(TAG_TIME).to_string()),
            ("cost", self.cost.to_string()),
        ]
    }

    /// Reads them back. `None` for a machine that is not ours; what else is missing counts as over, and as free.
    fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let text = |name| value(name).unwrap_or_default().to_owned();
        let expires = value("expires").and_then(|at| NaiveDateTime::parse_from_str(at, TAG_TIME).ok());
        Some(Self {
            id: value("id")?.to_owned(),
            fleet: text("fleet"),
            attempt: text("attempt"),
            expires: expires.map_or(SystemTime::UNIX_EPOCH, |at| at.and_utc().into()),
            cost: value("cost").and_then(|cost| cost.parse().ok()).unwrap_or_default(),
        })
    }
}

/// What a machine costs at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// For an hour.
    pub hour: MicroUsd,
    /// For all traffic that it may carry.
    pub traffic: MicroUsd,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hour.0, self.traffic.0)
    }
}

impl FromStr for Cost {
    type Err = String;

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, String> {
        let (hour, traffic) = text.split_once('-').ok_or("no cost")?;
        let sum = |text: &str| text.parse().map(MicroUsd).map_err(|_| format!("{text:?} is no sum"));
        Ok(Self { hour: sum(hour)?, traffic: sum(traffic)? })
    }
}

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// On its way, or at work.
    Alive,
    /// Switched off, and still paid for.
    Off,
    /// Costs nothing any more.
    Gone,
}

/// A machine, as the cloud tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The cloud's name for it.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    /// Where it is reached; known some seconds after the purchase.
    pub address: Option<IpAddr>,
    /// What it is known by.
    pub tags: Tags,
    /// When it was bought.
    pub bought: Option<SystemTime>,
    /// What it is.
    pub kind: String,
    /// Why it is gone, if the cloud says.
    pub reason: Option<String>,
}

/// One thing that was looked at, and what was found.
#[derive(Debug)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// What there is to say of it, or what is wrong.
    pub result: Result<String, CloudError>,
}

impl Finding {
    /// What can be had.
    fn best(offers: Result<Vec<Offer>, CloudError>, none: impl Fn(String) -> CloudError) -> Self {
        let result = offers.and_then(|offers| match offers.first() {
            None => Err(none("none of the types can be had".into())),
            Some(best) => {
                let place = if best.zone.is_empty() { String::new() } else { format!(" in {}", best.zone) };
                let (count, kind, hour) = (offers.len(), &best.kind, best.per_hour());
                Ok(format!("{count}; the cheapest is {kind}{place}, {hour} an hour"))
            }
        });
        Self { what: "a type that can be had", result }
    }

    /// What there is already.
    fn ours(machines: Result<Vec<Machine>, CloudError>) -> Self {
        let result = machines.map(|all| format!("{} of this account's are ours", all.len()));
        Self { what: "listing machines", result }
    }
}

/// Offers, cheapest first; of what costs the same, in the order of these kinds.
fn sorted(mut offers: Vec<Offer>, kinds: &[String]) -> Vec<Offer> {
    let place = |kind: &String| kinds.iter().position(|wanted| wanted == kind);
    offers.sort_by(|a, b| (a.price, place(&a.kind), &a.zone).cmp(&(b.price, place(&b.kind), &b.zone)));
    offers
}

/// There are no credentials, or they can't be used.
fn no_credentials(cloud: &'static str, said: String, hint: String) -> CloudError {
    CloudError {
        cloud,
        action: "credentials",
        region: "any region".into(),
        trouble: Trouble::Credentials,
        said,
        hint: Some(hint).filter(|hint| !hint.is_empty()),
    }
}

/// Does it to each, also after one has failed; says of the first that has.
fn each(machines: &[String], one: impl Fn(&str) -> Result<(), CloudError>) -> Result<(), CloudError> {
    machines.iter().map(|machine| one(machine)).fold(Ok(()), Result::and)
}

/// The attempts that are under way now.
pub type Attempts<'a> = dyn Fn() -> Result<HashSet<String>, FleetError> + 'a;

/// What a cloud can do. All of it may block, and may be called from several threads.
///
/// `tests/cloud/contract.rs` holds every cloud to it.
pub trait Cloud: Send + Sync {
    /// The regions that the account may use.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn regions(&self) -> Result<Vec<String>, CloudError>;

    /// What can be had in a region, cheapest first; of what costs the same, in the order of the query.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn offers(&self, region: &str, query: &Query) -> Result<Vec<Offer>, CloudError>;

    /// Looks whether what a purchase needs is there, and may be done: what was looked at, and what is wrong with it. Buys
    /// and changes nothing.
    fn examine(&self, region: &str, query: &Query) -> Vec<Finding>;

    /// Buys one machine. An order is given once.
    ///
    /// # Errors
    /// See [`CloudError`]. After [`Trouble::Unknown`] there may be a machine: see [`find`](Self::find).
    fn create(&self, order: &Order) -> Result<Machine, CloudError>;

    /// What became of an order whose answer is not known. A machine that it finds may have been bought by asking, if the
    /// order has bought none before; none is ever bought after `None`, and it is `None` when the machine is gone again.
    ///
    /// # Errors
    /// [`Trouble::Unknown`] as long as the order may still have its effect.
    fn find(&self, order: &Order) -> Result<Option<Machine>, CloudError>;

    /// The machines of a region that carry our tags, of any fleet.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError>;

    /// One machine, by the cloud's name for it; `None` if it is gone.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn describe(&self, region: &str, machine: &str) -> Result<Option<Machine>, CloudError>;

    /// Ends machines. That some are gone is no error.
    ///
    /// # Errors
    /// See [`CloudError`]. Some may have ended.
    fn terminate(&self, region: &str, machines: &[String]) -> Result<(), CloudError>;

    /// Removes what purchases of this fleet left behind that costs nothing, where no machine uses it any more, except
    /// what belongs to `attempts` that are under way. These are asked for after all that was left behind is known, so
    /// that nothing of an attempt is taken for old that began meanwhile.
    ///
    /// # Errors
    /// See [`CloudError`], and those of `attempts`.
    fn tidy(&self, region: &str, fleet: &str, attempts: &Attempts<'_>) -> Result<(), FleetError> {
        let _ = (region, fleet, attempts);
        Ok(())
    }
}

/// The clouds, each connected to at its first use.
#[derive(Default)]
pub struct Clouds {
    aws: OnceLock<Connection>,
    hetzner: OnceLock<Connection>,
    digitalocean: OnceLock<Connection>,
}

type Connection = Result<Box<dyn Cloud>, CloudError>;

impl Clouds {
    /// The cloud of this provider, with the operator's credentials for it.
    ///
    /// # Errors
    /// [`Trouble::Credentials`] where there are none.
    pub fn get(&self, provider: Provider) -> Result<&dyn Cloud, CloudError> {
        fn connect<C: Cloud + 'static>(connect: fn() -> Result<C, CloudError>) -> Connection {
            connect().map(|cloud| Box::new(cloud) as Box<dyn Cloud>)
        }
        let connection = match provider {
            Provider::Local => {
                return Err(CloudError {
                    cloud: "local",
                    action: "connect",
                    region: "this machine".into(),
                    trouble: Trouble::Refused,
                    said: "is no cloud".into(),
                    hint: None,
                });
            }
            Provider::Aws => self.aws.get_or_init(|| connect(aws::Aws::connect)),
            Provider::Hetzner => self.hetzner.get_or_init(|| connect(hetzner::Hetzner::connect)),
            Provider::DigitalOcean => {
                self.digitalocean.get_or_init(|| connect(digitalocean::DigitalOcean::connect))
            }
        };
        match connection {
            Ok(cloud) => Ok(cloud.as_ref()),
            Err(error) => Err(error.clone()),
        }
    }
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The cloud has none left of this kind in this place: try another offer.
    Capacity,
    /// The account may not have more.
    Quota,
    /// Too many calls. This one was not carried out.
    Throttled,
    /// The account may not do this.
    Permission,
    /// No credentials, or bad ones.
    Credentials,
    /// What the order bought is gone.
    Gone,
    /// The cloud refuses for another reason.
    Refused,
    /// Nobody knows what became of the call.
    Unknown,
}

/// A call that failed. Carries no secret: user-data is never repeated.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cloud}: {action} in {region}: {said}")]
pub struct CloudError {
    /// Which cloud.
    pub cloud: &'static str,
    /// The call, in the cloud's own words.
    pub action: &'static str,
    /// Where.
    pub region: String,
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// What the cloud said.
    pub said: String,
    /// What to try.
    pub hint: Option<String>,
}

impl CloudError {
    /// Is it certain that nothing was bought?
    pub fn is_certain(&self) -> bool {
        self.trouble != Trouble::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn money_is_read_and_rounded_up() {
        let parse = |text: &str| text.parse::<MicroUsd>().map(|m| m.0);
        assert_eq!(parse("0.0104"), Ok(10_400));
        assert_eq!(parse("20"), Ok(20_000_000));
        assert_eq!(parse("0.00000001"), Ok(1));
        for bad in ["", ".5", "1e3", "-1", "1.2.3", "99999999999999999999"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(MicroUsd(10_400).to_string(), "0.0104 USD");
        assert_eq!(MicroUsd(10_401).to_string(), "0.0105 USD");
        assert_eq!(MicroUsd(1_999_999).to_string(), "2.0000 USD");
        assert_eq!(MicroUsd(3600).for_seconds(1), MicroUsd(1));
        assert_eq!(MicroUsd(3601).for_seconds(1), MicroUsd(2));
    }

    #[test]
    fn tags_are_read_back() {
        let tags = Tags {
            fleet: "0123456789abcdef".into(),
            id: "abcd2345".into(),
            attempt: "wxyz6789".into(),
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            cost: Cost { hour: MicroUsd(8301), traffic: MicroUsd(198_000) },
        };
        let pairs = tags.pairs();
        assert_eq!((pairs[3].1.as_str(), pairs[4].1.as_str()), ("20270115T080000Z", "8301-198000"));
        for (_, value) in &pairs {
            assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{value}");
        }
        let value =
            |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!(Tags::read(value), Some(tags));
        assert_eq!(Tags::read(|_| None), None);
        let odd = Tags::read(|name| Some(if name == "id" { "x" } else { "?" })).unwrap();
        assert_eq!((odd.expires, odd.cost), (SystemTime::UNIX_EPOCH, Cost::default()));
    }
}
