//! `eebt cost`

use std::time::{Duration, SystemTime};

use anyhow::Context;
use eebt_provisioner::cloud::MicroUsd;
use eebt_provisioner::cloud::cost::{SPENDING_TIME, between, cost, lived, rate};
use eebt_provisioner::{Fleet, Instance};
use serde_json::json;

use crate::print::{Printer, rfc3339, table};

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Sums of a fleet.
#[derive(Debug, PartialEq, Eq)]
struct Bill {
    month: SystemTime,
    /// In this month, until now.
    spent: MicroUsd,
    /// To those that live, from now until they end.
    promised: MicroUsd,
    /// In this month, if as many as now are kept until it ends.
    forecast: MicroUsd,
    /// In the last 30 days and for those that live: what `--max-spend` limits.
    limited: MicroUsd,
    /// Of one exit bridge, by the mean of those of the last 30 days, until their ends.
    hour: Option<MicroUsd>,
    live: usize,
}

impl Bill {
    fn new(rows: &[Instance], now: SystemTime) -> anyhow::Result<Self> {
        let (month, next) = month(now).context("what month is it?")?;
        let until_now = |from: SystemTime| rows.iter().map(|row| between(row, from, now)).sum::<MicroUsd>();
        let live = || rows.iter().filter(|row| row.ended.is_none());
        let rate: MicroUsd = live().map(rate).sum();
        let (spent, left) = (until_now(month), next.duration_since(now).unwrap_or_default());
        let lived: Duration = rows.iter().map(|row| lived(row, now)).sum();
        let ever: MicroUsd = rows.iter().map(|row| cost(row, now)).sum();
        Ok(Self {
            month,
            spent,
            promised: live().map(|row| MicroUsd(cost(row, now).0 - between(row, row.created, now).0)).sum(),
            forecast: [spent, rate.for_seconds(left.as_secs())].into_iter().sum(),
            limited: ever,
            hour: ever.0.saturating_mul(3600).checked_div(lived.as_secs()).map(MicroUsd),
            live: live().count(),
        })
    }
}

/// When the month began, and when the next one does (UTC).
fn month(now: SystemTime) -> Option<(SystemTime, SystemTime)> {
    let first = |at: SystemTime| {
        let text = rfc3339(at);
        humantime::parse_rfc3339(&format!("{}-01T00:00:00Z", text.get(..7)?)).ok()
    };
    let begin = first(now)?;
    Some((begin, first(begin + Duration::from_secs(32 * 24 * 3600))?))
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let mut rows = fleet.ledger().since(now - SPENDING_TIME)?;
        rows.retain(|row| row.purchase.is_some());
        let bill = Bill::new(&rows, now)?;
        if self.json {
            let each: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({ "id": row.id, "provider": row.provider, "region": row.region(),
                        "kind": row.purchase.as_ref().map(|p| &p.kind),
                        "usd_per_hour": row.purchase.as_ref().map(|p| p.price.plain()),
                        "usd": between(row, row.created, now).plain(), "usd_until_end": cost(row, now).plain() })
                })
                .collect();
            return printer.json(&json!({ "month_begins": rfc3339(bill.month), "spent_usd": bill.spent.plain(),
                "promised_usd": bill.promised.plain(), "forecast_usd": bill.forecast.plain(),
                "limited_usd": bill.limited.plain(), "usd_per_exit_bridge_hour": bill.hour.map(MicroUsd::plain),
                "live": bill.live, "instances": each }));
        }
        let lines = [
            ("spent this month (UTC)".to_owned(), bill.spent),
            (format!("promised to the {} that live", bill.live), bill.promised),
            ("this month, if as many are kept until its end".to_owned(), bill.forecast),
            ("counted for --max-spend".to_owned(), bill.limited),
        ];
        let mut lines: Vec<Vec<String>> =
            lines.into_iter().map(|(what, money)| vec![what, money.to_string()]).collect();
        if let Some(hour) = bill.hour {
            lines.push(vec!["one exit bridge for an hour, by the last 30 days".into(), hour.to_string()]);
        }
        printer.data(&table(&lines))?;
        printer.say("at most: by the prices that were bid, and as if each carried all that it may.");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_and_end() {
        for (now, begin, next) in [
            ("2026-11-23T10:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2028-02-01T00:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ] {
            let at = |text| humantime::parse_rfc3339(text).unwrap();
            assert_eq!(month(at(now)), Some((at(begin), at(next))));
        }
    }
}
