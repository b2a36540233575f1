//! What the owner filled in. A field that is not there is a box that was not ticked.

use eebt_page::forms::Fields;

use crate::categories::CATEGORIES;
use crate::settings::{Hours, Leave, Limits, Rules};

fn is_ticked(fields: &Fields, name: &str) -> bool {
    fields.get(name) == Some("yes")
}

fn number(fields: &Fields, name: &str) -> Result<u32, String> {
    let text = fields.get(name).unwrap_or_default().trim();
    text.parse().map_err(|_| format!("{name}: a whole number is expected"))
}

/// A number, where the box before it is ticked.
fn optional(fields: &Fields, name: &str) -> Result<Option<u32>, String> {
    is_ticked(fields, &format!("{name}_on")).then(|| number(fields, name)).transpose()
}

/// Rules.
///
/// # Errors
/// Names the field.
pub(super) fn rules(rules: &mut Rules, fields: &Fields) -> Result<(), String> {
    let hours = match is_ticked(fields, "hours_on") {
        true => {
            let time = |name| fields.get(name).unwrap_or_default();
            let hours = format!("{}-{}", time("from"), time("to")).parse::<Hours>();
            Some(hours.map_err(|error| format!("hours: {error}"))?)
        }
        false => None,
    };
    *rules = Rules {
        idle_minutes: optional(fields, "idle_minutes")?,
        known_line: is_ticked(fields, "known_line"),
        battery: is_ticked(fields, "battery"),
        metered: is_ticked(fields, "metered"),
        vpn: is_ticked(fields, "vpn"),
        captive_portal: is_ticked(fields, "captive_portal"),
        full_screen: is_ticked(fields, "full_screen"),
        other_traffic_kbs: optional(fields, "other_traffic_kbs")?,
        hours,
    };
    Ok(())
}

/// Limits.
///
/// # Errors
/// Names the field.
pub(super) fn limits(limits: &mut Limits, fields: &Fields) -> Result<(), String> {
    *limits = Limits {
        up_kbs: number(fields, "up_kbs")?,
        down_kbs: number(fields, "down_kbs")?,
        day_mb: optional(fields, "day_mb")?,
        month_mb: optional(fields, "month_mb")?,
        clients: number(fields, "clients")?,
        memory_mib: number(fields, "memory_mib")?,
        cpu_percent: number(fields, "cpu_percent")?,
        drain_seconds: number(fields, "drain_seconds")?,
    };
    Ok(())
}

/// What may leave.
///
/// # Errors
/// Names the field.
pub(super) fn leave(leave: &mut Leave, fields: &Fields) -> Result<(), String> {
    let only = match fields.get("sites") {
        Some("some") => CATEGORIES.iter().map(|c| c.name).filter(|name| is_ticked(fields, name)).collect(),
        Some("all") => Vec::new(),
        _ => return Err("sites: all or some is expected".into()),
    };
    if fields.get("sites") == Some("some") && only.is_empty() {
        return Err("sites: tick at least one kind".into());
    }
    let text = |name: &str| fields.get(name).map(str::trim).filter(|text| !text.is_empty());
    let country = text("country").map(str::parse).transpose();
    let country = country.map_err(|error: eebt_proto::country::CountryError| format!("country: {error}"))?;
    let block_list = text("block_list").map(std::path::PathBuf::from);
    let new = Leave { only: only.into_iter().map(String::from).collect(), block_list, country };
    new.check_block_list().map_err(|error| format!("block_list: {error}"))?;
    *leave = new;
    Ok(())
}
