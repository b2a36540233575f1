//! What machines cost, at most: by the prices that were bid for them, and by the traffic that they may carry.

use std::time::{Duration, SystemTime};

use super::MicroUsd;
use super::saga::LATE;
use crate::instance::{Instance, Purchase};

/// The time over which spending is limited.
pub const SPENDING_TIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a machine is paid for at least.
const LEAST_PAID: Duration = Duration::from_secs(60);

/// What a row costs until it ends: money that is promised is not there to be spent again.
pub fn cost(row: &Instance) -> MicroUsd {
    between(row, row.created, paid_until(row))
}

/// What fell due for a row from `from` to `to`.
pub fn between(row: &Instance, from: SystemTime, to: SystemTime) -> MicroUsd {
    let Some(purchase) = row.purchase.as_ref().filter(|_| is_bought(row)) else { return MicroUsd::default() };
    let traffic = traffic_until(row, purchase, to).0 - traffic_until(row, purchase, from.min(to)).0;
    let (from, to) = (row.created.max(from), paid_until(row).min(to));
    let hours = purchase.price.for_seconds(to.duration_since(from).unwrap_or_default().as_secs());
    MicroUsd(hours.0.saturating_add(traffic))
}

/// What a row may have spent on traffic by then: half of all from its first moment, the rest evenly over its life. That
/// is how its exit bridge is bounded (`BridgeConfig::in_guest`).
fn traffic_until(row: &Instance, purchase: &Purchase, at: SystemTime) -> MicroUsd {
    let age = at.min(ends(row)).duration_since(row.created).unwrap_or_default();
    let life = row.expires.duration_since(row.created).unwrap_or_default().as_secs().max(1);
    if age.is_zero() {
        return MicroUsd::default();
    }
    let half = u128::from(purchase.traffic.0.div_ceil(2));
    let rest = half * u128::from(age.as_secs().min(life)) / u128::from(life);
    MicroUsd(u64::try_from(half + rest).unwrap_or(u64::MAX))
}

/// How long its machine ran, or will at most.
pub fn lived(row: &Instance) -> Duration {
    if is_bought(row) { ends(row).duration_since(row.created).unwrap_or_default() } else { Duration::ZERO }
}

fn ends(row: &Instance) -> SystemTime {
    row.ended.unwrap_or(row.expires + LATE)
}

fn paid_until(row: &Instance) -> SystemTime {
    ends(row).max(row.created + LEAST_PAID)
}

/// Did it come to an order? One that lives may yet.
fn is_bought(row: &Instance) -> bool {
    let ordered = |p: &Purchase| p.token.is_some() || p.machine.is_some();
    row.purchase.as_ref().is_some_and(|purchase| row.ended.is_none() || ordered(purchase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::State;
    use crate::instance::tests::{at, row};

    fn bought(token: Option<&str>, ended: Option<u64>) -> Instance {
        Instance {
            ended: ended.map(at),
            purchase: Some(Purchase {
                region: "r".into(),
                kind: "k".into(),
                price: MicroUsd(3600),
                traffic: MicroUsd(0),
                token: token.map(str::to_owned),
                machine: None,
            }),
            ..row("x", State::Running)
        }
    }

    #[test]
    fn money_is_promised_until_the_expiry() {
        // Expires at 1000.
        assert_eq!(cost(&bought(None, None)), MicroUsd(1000 + LATE.as_secs()), "from the plan on");
        assert_eq!(cost(&bought(None, Some(100))), MicroUsd(0), "no order, no machine");
        assert_eq!(cost(&bought(Some("t"), Some(100))), MicroUsd(100));
        assert_eq!(cost(&bought(Some("t"), Some(1))), MicroUsd(60), "a minute at least");
        assert_eq!(cost(&row("x", State::Running)), MicroUsd(0), "local ones cost nothing");
    }

    #[test]
    fn traffic_counts_as_much_as_there_may_have_been() {
        let mut row = bought(Some("t"), None);
        if let Some(purchase) = &mut row.purchase {
            (purchase.price, purchase.traffic) = (MicroUsd(0), MicroUsd(1000));
        }
        // Created at 0, expires at 1000.
        assert_eq!(cost(&row), MicroUsd(1000), "all of it is promised");
        for (now, spent) in [(0, 0), (1, 500), (500, 750), (1000, 1000), (1200, 1000)] {
            assert_eq!(between(&row, at(0), at(now)), MicroUsd(spent), "at {now}");
        }
        assert_eq!(between(&row, at(500), at(1000)), MicroUsd(250));
        row.ended = Some(at(500));
        assert_eq!(cost(&row), MicroUsd(750));
    }

    #[test]
    fn parts_of_a_life_add_up() {
        let row = bought(Some("t"), Some(500));
        let parts = [(0, 100), (100, 400), (400, 9999)].map(|(from, to)| between(&row, at(from), at(to)).0);
        assert_eq!((parts, cost(&row).0), ([100, 300, 100], 500));
        assert_eq!(between(&row, at(600), at(700)), MicroUsd(0));
        assert_eq!(lived(&row).as_secs(), 500);
    }
}
