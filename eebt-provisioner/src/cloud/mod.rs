//! Clouds: machines that cost money, bought one for each exit bridge.
//!
//! What may go wrong with a purchase is decided here once for all clouds: every call that buys carries a token
//! under which the cloud buys at most once ([`Cloud::create`]), so asking again is how one finds out what became
//! of a call whose answer was lost.

pub mod aws;
pub mod cost;
mod saga;
pub mod user_data;

use std::collections::HashSet;
use std::fmt;
use std::iter::Sum;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::SystemTime;

use crate::fleet::FleetError;
use crate::instance::Provider;
use serde::{Deserialize, Serialize};

pub use saga::{BuyError, Come, Offers, Wanted};

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
    /// What the cloud calls it, such as `t3.nano`: any of them will do.
    pub kinds: Vec<String>,
    /// Processors, as in `uname -m`: those that the program was built for.
    pub arch: String,
    /// A system image; the newest Debian if `None`.
    pub image: Option<String>,
}

/// A kind of machine in a place, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What the cloud calls it, such as `t4g.nano`.
    pub kind: String,
    /// Where in the region: a zone, or empty where a cloud has none.
    pub zone: String,
    /// For one hour, at most: what is bid.
    pub price: MicroUsd,
    /// For one hour, what comes with it: a public address, a disk.
    pub besides: MicroUsd,
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
    /// Under this the cloud buys at most once.
    pub token: String,
    /// The region.
    pub region: String,
    /// What is bought.
    pub offer: Offer,
    /// The one port that is let in.
    pub port: u16,
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
        write!(f, "{}+{}", self.hour.plain(), self.traffic.plain())
    }
}

impl FromStr for Cost {
    type Err = String;

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, String> {
        let (hour, traffic) = text.split_once('+').ok_or("no cost")?;
        Ok(Self { hour: hour.parse()?, traffic: traffic.parse()? })
    }
}

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// On its way, or at work.
    Alive,
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
    /// Its tag: whose it is.
    pub fleet: String,
    /// Its tag: which instance it is.
    pub id: String,
    /// Its tag: the `eebt up` that bought it.
    pub attempt: String,
    /// Its tag: when it ends by itself.
    pub expires: Option<SystemTime>,
    /// Its tag: what it costs.
    pub cost: Cost,
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

/// The attempts that are under way now.
pub type Attempts<'a> = dyn Fn() -> Result<HashSet<String>, FleetError> + 'a;

/// What a cloud can do. All of it may block, and may be called from several threads.
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

    /// What a GB (10^9 bytes) costs that leaves a machine there, at most.
    fn traffic_price(&self, region: &str) -> MicroUsd;

    /// Buys one machine, or says which one was bought with this token before. An order whose token has bought a machine
    /// that is gone by now gives [`Trouble::Gone`].
    ///
    /// # Errors
    /// See [`CloudError`]. After [`Trouble::Unknown`] there may be a machine.
    fn create(&self, order: &Order) -> Result<Machine, CloudError>;

    /// The machines of a region that carry our tags, of any fleet.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError>;

    /// Ends a machine. One that is gone is no error.
    ///
    /// # Errors
    /// See [`CloudError`].
    fn terminate(&self, region: &str, machine: &str) -> Result<(), CloudError>;

    /// Removes what purchases of this fleet left behind that costs nothing, where no machine uses it any more, except
    /// what belongs to `attempts` that are under way. These are asked for after all that was left behind is known, so
    /// that nothing of an attempt is taken for old that began meanwhile.
    ///
    /// # Errors
    /// See [`CloudError`], and those of `attempts`.
    fn tidy(&self, region: &str, fleet: &str, attempts: &Attempts<'_>) -> Result<(), FleetError>;
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The cloud has none left of this kind in this place: try another offer.
    Capacity,
    /// The account may not have more.
    Quota,
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
        let cost = Cost { hour: MicroUsd(8301), traffic: MicroUsd(198_000) };
        assert_eq!((cost.to_string().as_str(), cost.to_string().parse()), ("0.008301+0.198000", Ok(cost)));
    }
}
