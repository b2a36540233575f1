//! The cloud `hetzner`: Hetzner Cloud (<https://docs.hetzner.cloud/>). Its regions are locations.
//!
//! Names of servers are unique in a project, so one order can't buy two that live at once. A server that is switched off is
//! paid for until it is deleted.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rest::{Access, Api, Call, Refusal, end, settle};
use super::{
    Cloud, CloudError, Condition, Finding, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble,
    no_credentials, sorted,
};

const CLOUD: &str = "hetzner";
const BASE: &str = "https://api.hetzner.cloud/v1";
/// The system image.
const IMAGE: &str = "debian-13";
/// Labels: `eebt-id` and so on, and where the server is.
const PREFIX: &str = "eebt-";
const REGION: &str = "eebt-region";
/// Most that its lists give at once.
const PER_PAGE: usize = 50;
/// What a euro counts as, in percent of a dollar: well above the rate of the last ten years.
const EURO: u64 = 125;
/// For a TB that leaves, where the cloud does not say: what it is in its dearest location.
const TRAFFIC: &str = "8.81";

/// Hetzner Cloud with the operator's token.
pub(super) struct Hetzner {
    api: Api,
}

impl Hetzner {
    /// Finds the token where `hcloud` does: in `HCLOUD_TOKEN`, or in its file.
    pub(super) fn connect() -> Result<Self, CloudError> {
        let token = match env::var("HCLOUD_TOKEN") {
            Ok(token) => token,
            Err(_) => token_of_the_tool().map_err(|said| {
                no_credentials(CLOUD, said, hint(Trouble::Credentials).unwrap_or_default())
            })?,
        };
        let base = env::var("HCLOUD_ENDPOINT").unwrap_or_else(|_| BASE.to_owned());
        let access = Access { base, base_from: "HCLOUD_ENDPOINT", token };
        Ok(Self { api: Api::new(CLOUD, access, trouble, hint)? })
    }

    fn server(&self, call: Call<'_>, name: &str) -> Result<Option<Machine>, CloudError> {
        let found: Servers = self.api.get(call, "/servers", &[("name", name)])?;
        Ok(found.servers.iter().find_map(machine))
    }

    /// Is there such a system image for these processors?
    fn image(&self, region: &str, query: &Query) -> Result<String, CloudError> {
        if let Some(image) = &query.image {
            return Ok(image.clone());
        }
        let call = Call { action: "GET /images", region };
        let wanted = [("type", "system"), ("name", IMAGE), ("architecture", architecture(&query.arch))];
        let found: Images = self.api.get(call, "/images", &wanted)?;
        if found.images.iter().any(|image| image.name.as_deref() == Some(IMAGE)) {
            return Ok(IMAGE.to_owned());
        }
        let error = self.api.error(call, Trouble::Refused, format!("there is no image {IMAGE}"));
        Err(CloudError { hint: Some("name an image of your own with --image".into()), ..error })
    }

    /// What a public IPv4 address costs there for an hour, and what money it is.
    fn pricing(&self, region: &str) -> Result<(MicroUsd, Currency), CloudError> {
        let call = Call { action: "GET /pricing", region };
        let Pricing { pricing } = self.api.get(call, "/pricing", &[])?;
        let odd = |what: &str| self.api.error(call, Trouble::Refused, what.to_owned());
        let currency = match pricing.currency.as_str() {
            "EUR" => Currency(EURO),
            "USD" => Currency(100),
            other => return Err(odd(&format!("prices are in {other}, and only EUR and USD are understood"))),
        };
        let of_ipv4 = pricing.primary_ips.iter().find(|ip| ip.kind == "ipv4");
        let here = of_ipv4.and_then(|ip| ip.prices.iter().find(|price| price.location == region));
        let price = here.and_then(|price| currency.usd(&price.price_hourly.gross));
        Ok((price.ok_or_else(|| odd("an address has no price"))?, currency))
    }
}

/// A currency, as what its unit is in percent of a dollar.
#[derive(Clone, Copy)]
struct Currency(u64);

impl Currency {
    fn usd(self, amount: &str) -> Option<MicroUsd> {
        let MicroUsd(sum) = amount.parse().ok()?;
        Some(MicroUsd(sum.checked_mul(self.0)?.div_ceil(100)))
    }
}

/// As Hetzner names processors.
fn architecture(arch: &str) -> &'static str {
    if arch == "arm64" { "arm" } else { "x86" }
}

/// What the context in use has as token, in the file of `hcloud`.
fn token_of_the_tool() -> Result<String, String> {
    #[derive(Deserialize)]
    struct File {
        active_context: Option<String>,
        #[serde(default)]
        contexts: Vec<Context>,
    }
    #[derive(Deserialize)]
    struct Context {
        name: String,
        token: String,
    }
    let usual = || Some(directories::BaseDirs::new()?.config_dir().join("hcloud/cli.toml"));
    let path = env::var_os("HCLOUD_CONFIG").map(PathBuf::from).or_else(usual).ok_or("there is no token")?;
    let text = fs::read_to_string(&path)
        .map_err(|err| format!("HCLOUD_TOKEN is not set, and {} can't be read: {err}", path.display()))?;
    // The error of the parser would repeat lines of the file.
    let file: File = toml::from_str(&text).map_err(|_| format!("{} is not hcloud's", path.display()))?;
    let name = env::var("HCLOUD_CONTEXT").ok().or(file.active_context).unwrap_or_default();
    let context = file.contexts.into_iter().find(|context| context.name == name);
    context.map(|context| context.token).ok_or_else(|| format!("{} has no context {name:?}", path.display()))
}

impl Cloud for Hetzner {
    fn regions(&self) -> Result<Vec<String>, CloudError> {
        let call = Call { action: "GET /locations", region: "any region" };
        let names = |page: Locations| page.locations.into_iter().map(|location| location.name).collect();
        self.api.pages(call, "/locations", &[], PER_PAGE, names)
    }

    fn offers(&self, region: &str, query: &Query) -> Result<Vec<Offer>, CloudError> {
        let call = Call { action: "GET /server_types", region };
        let types = |page: ServerTypes| page.server_types;
        let types: Vec<ServerType> = self.api.pages(call, "/server_types", &[], PER_PAGE, types)?;
        let (address, currency) = self.pricing(region)?;
        let image = self.image(region, query)?;
        let is_wanted = |kind: &ServerType| match &query.kinds[..] {
            [] => kind.cpu_type == "shared" && !kind.is_deprecated(region),
            kinds => kinds.contains(&kind.name),
        };
        let fits = |kind: &&ServerType| kind.architecture == architecture(&query.arch) && is_wanted(kind);
        let offer = |kind: &ServerType| {
            let price = kind.prices.iter().find(|price| price.location == region)?;
            let for_a_tb = price.price_per_tb_traffic.as_ref().map_or(TRAFFIC, |price| price.gross.as_str());
            Some(Offer {
                kind: kind.name.clone(),
                zone: String::new(),
                price: currency.usd(&price.price_hourly.gross)?,
                is_spot: false,
                besides: address,
                traffic: MicroUsd(currency.usd(for_a_tb)?.0.div_ceil(1000)),
                has_ipv6: true,
                image: image.clone(),
            })
        };
        Ok(sorted(types.iter().filter(fits).filter_map(offer).collect(), &query.kinds))
    }

    fn examine(&self, region: &str, query: &Query) -> Vec<Finding> {
        let call = Call { action: "POST /servers", region };
        vec![
            Finding { what: "an image of Debian", result: self.image(region, query) },
            Finding::best(self.offers(region, query), |said| self.api.error(call, Trouble::Refused, said)),
            Finding::ours(self.list(region)),
            Finding { what: "buying machines", result: self.api.may_post(call, "/servers") },
            Finding {
                what: "how many there may be",
                result: Ok("its API does not tell; see Limits in its console".into()),
            },
        ]
    }

    fn create(&self, order: &Order) -> Result<Machine, CloudError> {
        let Order { region, offer, tags, ssh_key, .. } = order;
        let call = Call { action: "POST /servers", region };
        let mut labels: BTreeMap<String, String> =
            tags.pairs().into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)).collect();
        labels.insert(REGION.to_owned(), region.clone());
        let mut body = json!({
            "name": name(tags),
            "server_type": offer.kind,
            "location": region,
            "image": offer.image,
            "labels": labels,
            "user_data": order.user_data,
            "public_net": { "enable_ipv4": true, "enable_ipv6": offer.has_ipv6 },
        });
        if let Some(key) = ssh_key {
            body["ssh_keys"] = json!([key]);
        }
        match self.api.post(call, "/servers", &body)? {
            Ok(Made { server }) => machine(&server).ok_or_else(|| {
                self.api.error(call, Trouble::Unknown, "the answer names no machine of ours".into())
            }),
            // By this very order: names are ours alone.
            Err(no) if no.code == "uniqueness_error" => {
                let found = self.server(Call { action: "GET /servers", region }, &name(tags))?;
                // Lists lag behind.
                found.ok_or_else(|| CloudError { trouble: Trouble::Unknown, ..self.api.refused(call, no) })
            }
            Err(no) => Err(self.api.refused(call, no)),
        }
    }

    fn find(&self, order: &Order) -> Result<Option<Machine>, CloudError> {
        let call = Call { action: "GET /servers", region: &order.region };
        settle(self, order, SystemTime::now(), |said| self.api.error(call, Trouble::Unknown, said))
    }

    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError> {
        let (call, ours) = (Call { action: "GET /servers", region }, format!("{PREFIX}id,{REGION}={region}"));
        let query = [("label_selector", ours.as_str())];
        let all = self.api.pages(call, "/servers", &query, PER_PAGE, |page: Servers| page.servers)?;
        Ok(all.iter().filter_map(machine).collect())
    }

    fn describe(&self, region: &str, machine_name: &str) -> Result<Option<Machine>, CloudError> {
        let call = Call { action: "GET /servers/{id}", region };
        let found: Option<Made> = self.api.find(call, &format!("/servers/{machine_name}"))?;
        Ok(found.and_then(|found| machine(&found.server)).filter(|m| m.condition != Condition::Gone))
    }

    fn terminate(&self, region: &str, machines: &[String]) -> Result<(), CloudError> {
        let call = Call { action: "DELETE /servers/{id}", region };
        end(self, &self.api, call, machines, |machine| format!("/servers/{machine}"))
    }
}

fn name(tags: &Tags) -> String {
    format!("eebt-{}", tags.id)
}

/// A machine of ours; `None` for anybody else's.
fn machine(server: &Server) -> Option<Machine> {
    let tags = Tags::read(|name| server.labels.get(&format!("{PREFIX}{name}")).map(String::as_str))?;
    let condition = match server.status.as_str() {
        "deleting" => Condition::Gone,
        "off" => Condition::Off,
        _ => Condition::Alive,
    };
    Some(Machine {
        name: server.id.to_string(),
        condition,
        address: server.public_net.ipv4.as_ref().and_then(|address| address.ip.parse::<IpAddr>().ok()),
        tags,
        bought: DateTime::parse_from_rfc3339(&server.created).ok().map(Into::into),
        kind: server.server_type.name.clone(),
        reason: (condition != Condition::Alive).then(|| format!("its status is {}", server.status)),
    })
}

/// What an error means (Hetzner Cloud API, "Errors").
fn trouble(refusal: &Refusal) -> Trouble {
    match refusal.code.as_str() {
        "resource_unavailable" | "placement_error" => Trouble::Capacity,
        // What is not sold there any more.
        "invalid_input" if refusal.message.contains("unsupported location for server type") => {
            Trouble::Capacity
        }
        "resource_limit_exceeded" => Trouble::Quota,
        "forbidden" | "token_readonly" => Trouble::Permission,
        "unauthorized" => Trouble::Credentials,
        "rate_limit_exceeded" => Trouble::Throttled,
        "locked" | "conflict" | "timeout" | "maintenance" | "unavailable" | "service_error"
        | "server_error" => Trouble::Unknown,
        _ if refusal.status.is_server_error() => Trouble::Unknown,
        _ => Trouble::Refused,
    }
}

fn hint(trouble: Trouble) -> Option<String> {
    let hint = match trouble {
        Trouble::Permission => "the token must be one that may read and write",
        Trouble::Quota => "ask for more under Limits in its console, or use fewer",
        Trouble::Capacity => "name more --type or another --region",
        Trouble::Credentials => {
            "`hcloud server list` must work: set HCLOUD_TOKEN, or `hcloud context create NAME`"
        }
        Trouble::Throttled => "wait a minute: the project makes more calls than it may",
        Trouble::Unknown => "run the same command again; what was begun is taken up",
        Trouble::Gone | Trouble::Refused => return None,
    };
    Some(hint.to_owned())
}

#[derive(Deserialize)]
struct Locations {
    locations: Vec<Location>,
}

#[derive(Deserialize)]
struct Location {
    name: String,
}

#[derive(Deserialize)]
struct ServerTypes {
    server_types: Vec<ServerType>,
}

#[derive(Deserialize)]
struct ServerType {
    name: String,
    architecture: String,
    cpu_type: String,
    /// As it was told until 2025.
    #[serde(default)]
    deprecated: Option<bool>,
    /// As it is told since.
    #[serde(default)]
    locations: Vec<SoldAt>,
    prices: Vec<Price>,
}

impl ServerType {
    fn is_deprecated(&self, region: &str) -> bool {
        let here = self.locations.iter().find(|place| place.name == region);
        self.deprecated == Some(true) || here.is_some_and(|place| place.deprecation.is_some())
    }
}

#[derive(Deserialize)]
struct SoldAt {
    name: String,
    #[serde(default)]
    deprecation: Option<Value>,
}

#[derive(Deserialize)]
struct Price {
    location: String,
    price_hourly: Amount,
    price_per_tb_traffic: Option<Amount>,
}

/// With taxes.
#[derive(Deserialize)]
struct Amount {
    gross: String,
}

#[derive(Deserialize)]
struct Pricing {
    pricing: Prices,
}

#[derive(Deserialize)]
struct Prices {
    currency: String,
    primary_ips: Vec<AddressPrices>,
}

#[derive(Deserialize)]
struct AddressPrices {
    #[serde(rename = "type")]
    kind: String,
    prices: Vec<Price>,
}

#[derive(Deserialize)]
struct Images {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    name: Option<String>,
}

#[derive(Deserialize)]
struct Servers {
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Made {
    server: Server,
}

#[derive(Deserialize)]
struct Server {
    id: u64,
    status: String,
    created: String,
    labels: BTreeMap<String, String>,
    public_net: PublicNet,
    server_type: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct PublicNet {
    ipv4: Option<Address>,
}

#[derive(Deserialize)]
struct Address {
    ip: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn euros_count_as_more_than_they_are() {
        assert_eq!(Currency(EURO).usd("0.0060000000000000"), Some(MicroUsd(7500)));
        assert_eq!(Currency(100).usd("0.0060"), Some(MicroUsd(6000)));
        assert_eq!(Currency(EURO).usd("free"), None);
    }

    #[test]
    fn errors_are_told_apart() {
        for (status, code, expected) in [
            (412, "resource_unavailable", Trouble::Capacity),
            (403, "resource_limit_exceeded", Trouble::Quota),
            (403, "token_readonly", Trouble::Permission),
            (401, "unauthorized", Trouble::Credentials),
            (423, "locked", Trouble::Unknown),
            (429, "rate_limit_exceeded", Trouble::Throttled),
            (502, "", Trouble::Unknown),
            (422, "invalid_input", Trouble::Refused),
        ] {
            let status = reqwest::StatusCode::from_u16(status).unwrap();
            let refusal = Refusal { status, code: code.into(), message: String::new() };
            assert_eq!(trouble(&refusal), expected, "{code}");
        }
    }
}
