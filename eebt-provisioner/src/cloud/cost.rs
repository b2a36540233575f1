//! What machines cost, at most: by the prices that were bid for them, and by the traffic that they may carry.

use std::time::{Duration, SystemTime};

use super::MicroUsd;
use super::reconcile::LATE;
use crate::instance::{Instance, Purchase};

/// The time over which spending is limited.
pub const SPENDING_TIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a machine is paid for at least.
const LEAST_PAID: Duration = Duration::from_secs(60);

/// What a row costs until it ends, as far as that is known `now`: money that is promised is not there to be spent again.
pub fn cost(row: &Instance, now: SystemTime) -> MicroUsd {
    due(row, paid_until(row, now), now)
}

/// What fell due for a row from `from` until `now`.
pub fn between(row: &Instance, from: SystemTime, now: SystemTime) -> MicroUsd {
    MicroUsd(due(row, now, now).0.saturating_sub(due(row, from.min(now), now).0))
}

/// What fell due for a row by then.
fn due(row: &Instance, at: SystemTime, now: SystemTime) -> MicroUsd {
    let Some(purchase) = row.purchase.as_ref().filter(|_| is_bought(row)) else { return MicroUsd::default() };
    let age = at.min(paid_until(row, now)).duration_since(row.created).unwrap_or_default();
    if age.is_zero() {
        return MicroUsd::default();
    }
    let seconds = age.as_secs().next_multiple_of(row.provider.paid_by().as_secs());
    let time = purchase.price.for_seconds(seconds).max(row.provider.least_bill());
    MicroUsd(time.0.saturating_add(traffic_until(row, purchase, at, now).0))
}

/// What a row may have spent on traffic by then: half of all from its first moment, the rest evenly over its life. That
/// is how its exit bridge is bounded (`BridgeConfig::in_guest`).
fn traffic_until(row: &Instance, purchase: &Purchase, at: SystemTime, now: SystemTime) -> MicroUsd {
    let age = at.min(ends(row, now)).duration_since(row.created).unwrap_or_default();
    let life = row.expires.duration_since(row.created).unwrap_or_default().as_secs().max(1);
    if age.is_zero() {
        return MicroUsd::default();
    }
    let half = u128::from(purchase.traffic.0.div_ceil(2));
    let rest = half * u128::from(age.as_secs().min(life)) / u128::from(life);
    MicroUsd(u64::try_from(half + rest).unwrap_or(u64::MAX))
}

/// How long its machine ran, or will at most.
pub fn lived(row: &Instance, now: SystemTime) -> Duration {
    if is_bought(row) {
        ends(row, now).duration_since(row.created).unwrap_or_default()
    } else {
        Duration::ZERO
    }
}

/// When it ended, or will: where that takes somebody, and nobody came, not before now.
fn ends(row: &Instance, now: SystemTime) -> SystemTime {
    let late = row.expires + LATE;
    row.ended.unwrap_or(if row.provider.frees_what_is_off() { late } else { late.max(now) })
}

fn paid_until(row: &Instance, now: SystemTime) -> SystemTime {
    ends(row, now).max(row.created + LEAST_PAID)
}

/// What a row that lives costs in an hour at most, traffic included.
pub fn rate(row: &Instance) -> MicroUsd {
    let Some(purchase) = row.purchase.as_ref().filter(|_| row.ended.is_none()) else {
        return MicroUsd::default();
    };
    let life = row.expires.duration_since(row.created).unwrap_or_default().as_secs().max(1);
    let traffic = u128::from(purchase.traffic.0) * 3600 / u128::from(life);
    MicroUsd(purchase.price.0.saturating_add(u64::try_from(traffic).unwrap_or(u64::MAX)))
}

/// Did it come to an order? One that lives may yet.
fn is_bought(row: &Instance) -> bool {
    let ordered = |p: &Purchase| p.token.is_some() || p.machine.is_some();
    row.purchase.as_ref().is_some_and(|purchase| row.ended.is_none() || ordered(purchase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::{at, row};
    use crate::instance::{Provider, State};

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

    /// What it costs, by what is known before its end.
    fn price(row: &Instance) -> MicroUsd {
        cost(row, at(0))
    }

    #[test]
    fn where_nobody_ends_it_it_costs_on() {
        let row = Instance { provider: Provider::Hetzner, ..bought(Some("t"), None) };
        assert_eq!(cost(&row, at(500)), MicroUsd(3600));
        assert_eq!(cost(&row, at(8000)), MicroUsd(3 * 3600), "it expired at 1000, and is still there");
        let row = Instance { provider: Provider::Aws, ..row };
        assert_eq!(cost(&row, at(8000)), MicroUsd(1000 + LATE.as_secs()), "it ended by itself");
        let row = Instance { provider: Provider::DigitalOcean, ..row };
        assert_eq!(cost(&row, at(0)), MicroUsd(10_000), "a cent at least");
    }

    #[test]
    fn money_is_promised_until_the_expiry() {
        // Expires at 1000.
        assert_eq!(price(&bought(None, None)), MicroUsd(1000 + LATE.as_secs()), "from the plan on");
        assert_eq!(price(&bought(None, Some(100))), MicroUsd(0), "no order, no machine");
        assert_eq!(price(&bought(Some("t"), Some(100))), MicroUsd(100));
        assert_eq!(price(&bought(Some("t"), Some(1))), MicroUsd(60), "a minute at least");
        assert_eq!(price(&row("x", State::Running)), MicroUsd(0), "local ones cost nothing");
    }

    #[test]
    fn where_hours_are_sold_a_minute_is_an_hour() {
        let row = Instance { provider: Provider::Hetzner, ..bought(Some("t"), Some(100)) };
        assert_eq!(price(&row), MicroUsd(3600));
        assert_eq!(between(&row, at(0), at(1)), MicroUsd(3600), "at once");
        let long = Instance { ended: Some(at(3601)), ..row };
        assert_eq!(price(&long), MicroUsd(7200));
    }

    #[test]
    fn traffic_counts_as_much_as_there_may_have_been() {
        let mut row = bought(Some("t"), None);
        if let Some(purchase) = &mut row.purchase {
            (purchase.price, purchase.traffic) = (MicroUsd(0), MicroUsd(1000));
        }
        // Created at 0, expires at 1000.
        assert_eq!(price(&row), MicroUsd(1000), "all of it is promised");
        for (now, spent) in [(0, 0), (1, 500), (500, 750), (1000, 1000), (1200, 1000)] {
            assert_eq!(between(&row, at(0), at(now)), MicroUsd(spent), "at {now}");
        }
        assert_eq!(between(&row, at(500), at(1000)), MicroUsd(250));
        row.ended = Some(at(500));
        assert_eq!(price(&row), MicroUsd(750));
    }

    #[test]
    fn parts_of_a_life_add_up() {
        let row = bought(Some("t"), Some(500));
        let parts = [(0, 100), (100, 400), (400, 9999)].map(|(from, to)| between(&row, at(from), at(to)).0);
        assert_eq!((parts, price(&row).0), ([100, 300, 100], 500));
        assert_eq!(between(&row, at(600), at(700)), MicroUsd(0));
        assert_eq!(lived(&row, at(0)).as_secs(), 500);
    }
}
