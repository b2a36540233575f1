//! The cloud `digitalocean`: Droplets (<https://docs.digitalocean.com/reference/api/>).
//!
//! Tags of DigitalOcean outlive what they mark, so a Droplet has two that others have too, and says in its name what else
//! it is known by: without a dot, for what looks like a host's name becomes the reverse name of its address. Two may have
//! the same name: an order is never given twice, and one without an answer is settled by looking for its Droplet.
//! A Droplet that is switched off is paid for until it is destroyed.

use std::env;
use std::io;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use chrono::DateTime;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Number, Value, json};

use super::rest::{Access, Api, Call, Refusal, end, settle};
use super::{
    Cloud, CloudError, Condition, Finding, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble,
    no_credentials, sorted,
};

const CLOUD: &str = "digitalocean";
const BASE: &str = "https://api.digitalocean.com";
/// The system image.
const IMAGE: &str = "debian-13-x64";
/// The tag of all Droplets of ours, and what their names begin with.
const MARK: &str = "eebt";
/// The tag of those of a fleet begins so.
const FLEET: &str = "eebt:fleet:";
/// What their names tell, in this order.
const NAMED: [&str; 4] = ["id", "attempt", "expires", "cost"];
/// Most that its lists give at once.
const PER_PAGE: usize = 200;
/// A GB that leaves, above what is included.
const TRAFFIC: MicroUsd = MicroUsd(10_000);

/// DigitalOcean with the operator's token.
pub(super) struct DigitalOcean {
    api: Api,
}

impl DigitalOcean {
    /// Finds the token where `doctl` does: in `DIGITALOCEAN_ACCESS_TOKEN`, or with the context that `doctl` has in use.
    /// `DIGITALOCEAN_TOKEN` is where Terraform looks.
    pub(super) fn connect() -> Result<Self, CloudError> {
        let named = ["DIGITALOCEAN_ACCESS_TOKEN", "DIGITALOCEAN_TOKEN"];
        let token = match named.iter().find_map(|name| env::var(name).ok()) {
            Some(token) => token,
            None => token_of_the_tool().map_err(|said| {
                no_credentials(CLOUD, said, hint(Trouble::Credentials).unwrap_or_default())
            })?,
        };
        let base = env::var("DIGITALOCEAN_API_URL").unwrap_or_else(|_| BASE.to_owned());
        let access = Access { base, base_from: "DIGITALOCEAN_API_URL", token };
        Ok(Self { api: Api::new(CLOUD, access, trouble, hint)? })
    }

    fn image(&self, region: &str, query: &Query) -> Result<String, CloudError> {
        if let Some(image) = &query.image {
            return Ok(image.clone());
        }
        let call = Call { action: "GET /v2/images/{slug}", region };
        let found: Option<Value> = self.api.find(call, &format!("/v2/images/{IMAGE}"))?;
        if found.is_some() {
            return Ok(IMAGE.to_owned());
        }
        let error = self.api.error(call, Trouble::Refused, format!("there is no image {IMAGE}"));
        Err(CloudError { hint: Some("name an image of your own with --image".into()), ..error })
    }

    /// How many Droplets there may be.
    fn limit(&self) -> Result<String, CloudError> {
        let call = Call { action: "GET /v2/account", region: "any region" };
        let Account { account } = self.api.get(call, "/v2/account", &[])?;
        Ok(format!("{} Droplets at once, those that are no exit bridges included", account.droplet_limit))
    }
}

/// What `doctl` has in use.
fn token_of_the_tool() -> Result<String, String> {
    let asked = Command::new("doctl").args(["auth", "token"]).stdin(Stdio::null()).output();
    let answer = asked.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "DIGITALOCEAN_ACCESS_TOKEN is not set, and there is no doctl".to_owned(),
        _ => format!("DIGITALOCEAN_ACCESS_TOKEN is not set, and doctl does not start: {error}"),
    })?;
    let token = String::from_utf8(answer.stdout).unwrap_or_default().trim().to_owned();
    if answer.status.success() && !token.is_empty() {
        return Ok(token);
    }
    Err("DIGITALOCEAN_ACCESS_TOKEN is not set, and `doctl auth token` gives none".into())
}

impl Cloud for DigitalOcean {
    fn regions(&self) -> Result<Vec<String>, CloudError> {
        let call = Call { action: "GET /v2/regions", region: "any region" };
        let some =
            |page: Regions| page.regions.into_iter().map(|region| (region.slug, region.available)).collect();
        let all: Vec<(String, bool)> = self.api.pages(call, "/v2/regions", &[], PER_PAGE, some)?;
        Ok(all.into_iter().filter(|(_, is_open)| *is_open).map(|(slug, _)| slug).collect())
    }

    fn offers(&self, region: &str, query: &Query) -> Result<Vec<Offer>, CloudError> {
        let call = Call { action: "GET /v2/sizes", region };
        if query.arch != "x86_64" {
            let error = self.api.error(call, Trouble::Refused, format!("it has no {} machines", query.arch));
            return Err(CloudError { hint: Some("--arch x86_64".into()), ..error });
        }
        let sizes: Vec<Size> = self.api.pages(call, "/v2/sizes", &[], PER_PAGE, |page: Sizes| page.sizes)?;
        let image = self.image(region, query)?;
        let is_wanted = |size: &Size| match &query.kinds[..] {
            [] => size.available && size.slug.starts_with("s-"),
            kinds => kinds.contains(&size.slug),
        };
        let fits = |size: &&Size| size.regions.iter().any(|known| known == region) && is_wanted(size);
        let offer = |size: &Size| {
            Some(Offer {
                kind: size.slug.clone(),
                zone: String::new(),
                price: size.price_hourly.to_string().parse().ok()?,
                is_spot: false,
                besides: MicroUsd(0),
                traffic: TRAFFIC,
                has_ipv6: true,
                image: image.clone(),
            })
        };
        Ok(sorted(sizes.iter().filter(fits).filter_map(offer).collect(), &query.kinds))
    }

    fn examine(&self, region: &str, query: &Query) -> Vec<Finding> {
        let call = Call { action: "POST /v2/droplets", region };
        vec![
            Finding { what: "an image of Debian", result: self.image(region, query) },
            Finding::best(self.offers(region, query), |said| self.api.error(call, Trouble::Refused, said)),
            Finding::ours(self.list(region)),
            Finding { what: "buying machines", result: self.api.may_post(call, "/v2/droplets") },
            Finding { what: "how many there may be", result: self.limit() },
        ]
    }

    fn create(&self, order: &Order) -> Result<Machine, CloudError> {
        let Order { region, offer, tags, ssh_key, .. } = order;
        let call = Call { action: "POST /v2/droplets", region };
        // An image of one's own has a number.
        let image = offer.image.parse::<u64>().map_or_else(|_| json!(offer.image), |id| json!(id));
        let keys: Vec<Value> = ssh_key
            .iter()
            .map(|key| key.parse::<u64>().map_or_else(|_| json!(key), |id| json!(id)))
            .collect();
        let body = json!({
            "name": name(tags),
            "region": region,
            "size": offer.kind,
            "image": image,
            "tags": [MARK, format!("{FLEET}{}", tags.fleet)],
            "user_data": order.user_data,
            "ssh_keys": keys,
            "ipv6": offer.has_ipv6,
            "with_droplet_agent": false,
        });
        match self.api.post(call, "/v2/droplets", &body)? {
            Ok(Made { droplet }) => machine(&droplet).ok_or_else(|| {
                self.api.error(call, Trouble::Unknown, "the answer names no machine of ours".into())
            }),
            Err(no) => Err(self.api.refused(call, no)),
        }
    }

    fn find(&self, order: &Order) -> Result<Option<Machine>, CloudError> {
        let call = Call { action: "GET /v2/droplets", region: &order.region };
        settle(self, order, SystemTime::now(), |said| self.api.error(call, Trouble::Unknown, said))
    }

    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError> {
        let call = Call { action: "GET /v2/droplets", region };
        let droplets = |page: Droplets| page.droplets;
        let all = self.api.pages(call, "/v2/droplets", &[("tag_name", MARK)], PER_PAGE, droplets)?;
        Ok(all.iter().filter(|droplet| droplet.region.slug == region).filter_map(machine).collect())
    }

    fn describe(&self, region: &str, machine_name: &str) -> Result<Option<Machine>, CloudError> {
        let call = Call { action: "GET /v2/droplets/{id}", region };
        let found: Option<Made> = self.api.find(call, &format!("/v2/droplets/{machine_name}"))?;
        Ok(found.and_then(|found| machine(&found.droplet)))
    }

    fn terminate(&self, region: &str, machines: &[String]) -> Result<(), CloudError> {
        let call = Call { action: "DELETE /v2/droplets/{id}", region };
        end(self, &self.api, call, machines, |machine| format!("/v2/droplets/{machine}"))
    }
}

/// `eebt-ID-ATTEMPT-EXPIRES-COST`: below 64 letters, for it becomes the machine's host name.
fn name(tags: &Tags) -> String {
    let pairs = tags.pairs();
    let named = pairs.iter().filter(|(name, _)| NAMED.contains(name)).map(|(_, value)| value.as_str());
    named.fold(MARK.to_owned(), |all, value| all + "-" + value)
}

/// A machine of ours; `None` for anybody else's.
fn machine(droplet: &Droplet) -> Option<Machine> {
    let mut parts = droplet.name.splitn(1 + NAMED.len(), '-');
    let (Some(MARK), values) = (parts.next(), parts.collect::<Vec<_>>()) else { return None };
    let fleet = droplet.tags.iter().find_map(|tag| tag.strip_prefix(FLEET));
    let place = |wanted: &str| NAMED.iter().position(|name| *name == wanted);
    let tags = Tags::read(|name| match name {
        "fleet" => fleet,
        _ => values.get(place(name)?).copied(),
    })?;
    let condition = match droplet.status.as_str() {
        "off" | "archive" => Condition::Off,
        _ => Condition::Alive,
    };
    // It has private addresses as well.
    let public = droplet.networks.v4.iter().find(|address| address.kind == "public");
    Some(Machine {
        name: droplet.id.to_string(),
        condition,
        address: public.and_then(|address| address.ip_address.parse::<IpAddr>().ok()),
        tags,
        bought: DateTime::parse_from_rfc3339(&droplet.created_at).ok().map(Into::into),
        kind: droplet.size_slug.clone(),
        reason: (condition != Condition::Alive).then(|| format!("its status is {}", droplet.status)),
    })
}

/// What an error means (DigitalOcean API, "HTTP Statuses"). What one of 422 is about is in its text alone.
fn trouble(refusal: &Refusal) -> Trouble {
    let says = |text: &str| refusal.message.to_lowercase().contains(text);
    match refusal.status {
        StatusCode::UNAUTHORIZED => Trouble::Credentials,
        StatusCode::FORBIDDEN => Trouble::Permission,
        StatusCode::TOO_MANY_REQUESTS => Trouble::Throttled,
        StatusCode::UNPROCESSABLE_ENTITY if says("limit") => Trouble::Quota,
        StatusCode::UNPROCESSABLE_ENTITY if says("not available") || says("unavailable") => Trouble::Capacity,
        StatusCode::UNPROCESSABLE_ENTITY if says("pending event") => Trouble::Unknown,
        status if status.is_server_error() => Trouble::Unknown,
        _ => Trouble::Refused,
    }
}

fn hint(trouble: Trouble) -> Option<String> {
    let hint = match trouble {
        Trouble::Permission => {
            "the token must have the scopes droplet (all of it), image:read, regions:read, sizes:read, account:read and tag:create"
        }
        Trouble::Quota => "ask for a higher Droplet limit in its control panel, or use fewer",
        Trouble::Capacity => "name more --type or another --region",
        Trouble::Credentials => {
            "`doctl account get` must work: set DIGITALOCEAN_ACCESS_TOKEN, or log in with `doctl auth init`"
        }
        Trouble::Throttled => "wait a minute: the account makes more calls than it may",
        Trouble::Unknown => "run the same command again; what was begun is taken up",
        Trouble::Gone | Trouble::Refused => return None,
    };
    Some(hint.to_owned())
}

#[derive(Deserialize)]
struct Regions {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    slug: String,
    #[serde(default)]
    available: bool,
}

#[derive(Deserialize)]
struct Sizes {
    sizes: Vec<Size>,
}

#[derive(Deserialize)]
struct Size {
    slug: String,
    #[serde(default)]
    available: bool,
    price_hourly: Number,
    regions: Vec<String>,
}

#[derive(Deserialize)]
struct Account {
    account: Limits,
}

#[derive(Deserialize)]
struct Limits {
    droplet_limit: u64,
}

#[derive(Deserialize)]
struct Droplets {
    droplets: Vec<Droplet>,
}

#[derive(Deserialize)]
struct Made {
    droplet: Droplet,
}

#[derive(Deserialize)]
struct Droplet {
    id: u64,
    name: String,
    status: String,
    created_at: String,
    size_slug: String,
    tags: Vec<String>,
    region: Region,
    networks: Networks,
}

#[derive(Deserialize)]
struct Networks {
    #[serde(default)]
    v4: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    ip_address: String,
    #[serde(rename = "type")]
    kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        for (status, message, expected) in [
            (422, "creating this/these droplet(s) will exceed your droplet limit", Trouble::Quota),
            (422, "Size is not available in this region.", Trouble::Capacity),
            (422, "Droplet already has a pending event.", Trouble::Unknown),
            (422, "Name is invalid", Trouble::Refused),
            (401, "Unable to authenticate you", Trouble::Credentials),
            (403, "You are not authorized", Trouble::Permission),
            (429, "API Rate limit exceeded.", Trouble::Throttled),
            (500, "Unexpected server-side error", Trouble::Unknown),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let refusal = Refusal { status, code: String::new(), message: message.into() };
            assert_eq!(trouble(&refusal), expected, "{message}");
        }
    }
}
