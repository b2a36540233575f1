//! The cloud `aws`: EC2, Spot Instances or on demand.
//!
//! One `RunInstances` for each exit bridge: its keys are in its own user-data, and its `ClientToken` answers for it alone.
//! The same order again buys nothing twice, so that is how one finds out what became of the first.

mod errors;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::ProvideCredentials as _;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::create_security_group::CreateSecurityGroupError;
use aws_sdk_ec2::types::{
    CreditSpecificationRequest, Filter, HttpTokensState, Instance, InstanceInterruptionBehavior,
    InstanceMarketOptionsRequest, InstanceMetadataEndpointState, InstanceMetadataOptionsRequest,
    InstanceStateName, InstanceType, InstanceTypeInfo, IpPermission, IpRange, Ipv6Range, LocationType,
    MarketType, Placement, ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag,
    TagSpecification,
};
use data_encoding::BASE64;
use tokio::runtime::Runtime;

use self::errors::{MISMATCH, failed, hint, nameless, refused};
use super::{
    Attempts, Cloud, CloudError, Condition, Finding, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble,
    no_credentials, sorted,
};
use crate::fleet::FleetError;

/// Who makes Debian's images (the account is the same in all regions of the public cloud; see Debian's wiki, "Cloud").
const DEBIAN: &str = "136693071363";
/// The images that are looked for.
const RELEASE: &str = "debian-13";

/// Tags: `eebt:id` and so on.
const PREFIX: &str = "eebt:";
const FLEET: &str = "eebt:fleet";
const ID: &str = "eebt:id";
const ATTEMPT: &str = "eebt:attempt";
/// What `ssh` listens on.
const SSH: u16 = 22;
/// How long EC2 shows an instance that has ended.
const PURGED: Duration = Duration::from_secs(3600);
/// Most machines that are ended by one call.
const BATCH: usize = 100;

/// A public IPv4 address costs so much for an hour, and the 8 GB of a Debian image's disk (gp3, where it is dearest).
const BESIDES: MicroUsd = MicroUsd(5_000 + 1_700);
/// A GB that leaves: where it is cheapest, and at most.
const TRAFFIC: (MicroUsd, MicroUsd) = (MicroUsd(90_000), MicroUsd(154_000));

/// Quotas of EC2: what their names are in Service Quotas, and their codes.
const SPOT_QUOTA: (&str, &str) = ("All Standard Spot Instance Requests", "L-34B43A08");
const ON_DEMAND_QUOTA: (&str, &str) = ("Running On-Demand Standard instances", "L-1216C47A");
/// The small types.
const SMALL: [&str; 6] = ["t3a.nano", "t3.nano", "t3a.micro", "t3.micro", "t2.nano", "t2.micro"];
const SMALL_ARM: [&str; 2] = ["t4g.nano", "t4g.micro"];

/// How long one call may take with all its tries, and one try of it.
const CALL: Duration = Duration::from_secs(120);
const TRY: Duration = Duration::from_secs(30);
/// How often a call is tried, unless the operator's settings for AWS say something else: throttled ones are the rule
/// where many are made.
const TRIES: u32 = 8;
/// What is bid, in percent of the price in force. Who bids less loses the machine at the first rise.
const BID: u64 = 150;

/// Where `aws` asks what cannot be asked of a region yet unknown.
const FIRST_REGION: &str = "us-east-1";

/// EC2 with the operator's credentials, found as AWS's own tools find them.
pub(super) struct Aws {
    runtime: Runtime,
    config: SdkConfig,
    clients: Mutex<HashMap<String, Client>>,
    /// Security groups of this run, by region and attempt.
    groups: Mutex<HashMap<(String, String), String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Aws {
    /// Finds the credentials.
    ///
    /// # Errors
    /// [`Trouble::Credentials`] where there are none.
    pub(super) fn connect() -> Result<Self, CloudError> {
        let hint =
            "`aws sts get-caller-identity` must work: set AWS_PROFILE, or log in with `aws configure sso`";
        let none = |said: String| no_credentials("aws", said, hint.into());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| none(error.to_string()))?;
        let timeouts =
            TimeoutConfig::builder().operation_timeout(CALL).operation_attempt_timeout(TRY).build();
        let config = runtime.block_on(async {
            let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
            if std::env::var_os("AWS_MAX_ATTEMPTS").is_none() {
                loader = loader.retry_config(RetryConfig::adaptive().with_max_attempts(TRIES));
            }
            loader.load().await
        });
        let provider = config.credentials_provider().ok_or_else(|| none("there are none".into()))?;
        runtime.block_on(provider.provide_credentials()).map_err(|error| none(eebt_proto::causes(&error)))?;
        Ok(Self { runtime, config, clients: Mutex::default(), groups: Mutex::default() })
    }

    fn client(&self, region: &str) -> Client {
        let make = || {
            let config =
                aws_sdk_ec2::config::Builder::from(&self.config).region(Region::new(region.to_owned()));
            Client::from_conf(config.build())
        };
        lock(&self.clients).entry(region.to_owned()).or_insert_with(make).clone()
    }

    /// Makes a call and says what went wrong with it in our words.
    fn call<T, E>(
        &self,
        action: &'static str,
        region: &str,
        future: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, CloudError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.runtime.block_on(future).map_err(|error| failed(action, region, &error))
    }

    /// Would this call, made to be tried only, be permitted? (EC2 API reference, "Common query parameters", `DryRun`.)
    fn dry<T, E>(
        &self,
        action: &'static str,
        region: &str,
        future: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<String, CloudError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let error = match self.runtime.block_on(future) {
            Ok(_) => return Ok("permitted".into()),
            Err(error) => error,
        };
        match error.code() {
            Some("DryRunOperation") => Ok("permitted".into()),
            // It is about something that is not there, and whether that would be permitted comes first.
            Some(code) if code.ends_with(".NotFound") || code.ends_with(".Malformed") => {
                Ok("permitted".into())
            }
            _ => Err(failed(action, region, &error)),
        }
    }

    /// How many virtual processors of small types the account may have at once, spot or on demand.
    fn quota(&self, region: &str, is_spot: bool) -> Result<String, CloudError> {
        let (what, code) = if is_spot { SPOT_QUOTA } else { ON_DEMAND_QUOTA };
        let config =
            aws_sdk_servicequotas::config::Builder::from(&self.config).region(Region::new(region.to_owned()));
        let client = aws_sdk_servicequotas::Client::from_conf(config.build());
        let request = client.get_service_quota().service_code("ec2").quota_code(code);
        let answer = self.call("GetServiceQuota", region, request.send())?;
        let most = answer.quota().and_then(|quota| quota.value()).unwrap_or_default();
        let said = format!("{most} virtual processors at once ({what}); a t3 or t4g has 2");
        if most >= 2.0 {
            return Ok(said);
        }
        let trouble = Trouble::Quota;
        Err(CloudError {
            trouble,
            hint: hint(trouble, "RunInstances"),
            ..refused("GetServiceQuota", region, &said)
        })
    }

    /// The image that was asked for; else the newest of Debian's for these processors.
    fn image(&self, region: &str, query: &Query) -> Result<String, CloudError> {
        if let Some(image) = &query.image {
            return Ok(image.clone());
        }
        let arch = query.arch.as_str();
        let debian_arch = if arch == "x86_64" { "amd64" } else { arch };
        let request = self.client(region).describe_images().owners(DEBIAN);
        let request = request
            .filters(filter("name", &format!("{RELEASE}-{debian_arch}-*")))
            .filters(filter("architecture", arch))
            .filters(filter("state", "available"));
        let images =
            self.call("DescribeImages", region, request.into_paginator().items().send().try_collect())?;
        let newest = images.iter().max_by_key(|image| image.creation_date());
        let image = newest.and_then(|image| image.image_id());
        image.map(str::to_owned).ok_or_else(|| CloudError {
            hint: Some("name an image of your own with --image".into()),
            ..refused("DescribeImages", region, &format!("there is no {RELEASE} image for {arch} processors"))
        })
    }

    /// The zones whose default subnet has IPv6 addresses.
    fn zones_of_ipv6(&self, region: &str) -> Result<HashSet<String>, CloudError> {
        let request = self.client(region).describe_subnets().filters(filter("default-for-az", "true"));
        let subnets =
            self.call("DescribeSubnets", region, request.into_paginator().items().send().try_collect())?;
        let with = subnets.iter().filter(|subnet| !subnet.ipv6_cidr_block_association_set().is_empty());
        Ok(with.filter_map(|subnet| subnet.availability_zone().map(str::to_owned)).collect())
    }

    /// The prices in force, by type and zone.
    fn spot_prices(
        &self,
        region: &str,
        types: &[InstanceTypeInfo],
    ) -> Result<HashMap<(InstanceType, String), MicroUsd>, CloudError> {
        let mut request =
            self.client(region).describe_spot_price_history().product_descriptions("Linux/UNIX");
        for kind in types.iter().filter_map(|info| info.instance_type()) {
            request = request.instance_types(kind.clone());
        }
        // From now on: the price in force, once for each zone.
        let request = request.start_time(SystemTime::now().into());
        let prices = request.into_paginator().items().send().try_collect();
        let prices = self.call("DescribeSpotPriceHistory", region, prices)?;
        // The latest one counts, should there be several.
        let mut in_force: HashMap<(InstanceType, String), (i64, MicroUsd)> = HashMap::new();
        for price in &prices {
            let (Some(kind), Some(zone)) = (price.instance_type(), price.availability_zone()) else {
                continue;
            };
            let Some(usd) = price.spot_price().and_then(|text| text.parse().ok()) else { continue };
            let at = price.timestamp().map_or(0, |at| at.secs());
            let known = in_force.entry((kind.clone(), zone.to_owned())).or_insert((at, usd));
            if at > known.0 {
                *known = (at, usd);
            }
        }
        Ok(in_force.into_iter().map(|(place, (_, price))| (place, price)).collect())
    }

    /// The security group of an attempt, which lets in these ports. Made where there is none.
    fn group(&self, region: &str, ports: &[u16], tags: &Tags) -> Result<String, CloudError> {
        let mut groups = lock(&self.groups);
        let key = (region.to_owned(), tags.attempt.clone());
        if let Some(group) = groups.get(&key) {
            return Ok(group.clone());
        }
        let (client, name) = (self.client(region), format!("eebt-{}", tags.attempt));
        let group_tags = TagSpecification::builder()
            .resource_type(ResourceType::SecurityGroup)
            .tags(tag(FLEET, &tags.fleet))
            .tags(tag(ATTEMPT, &tags.attempt));
        let create =
            client.create_security_group().group_name(&name).description("eebt: one port of exit bridges");
        let create = create.tag_specifications(group_tags.build());
        let is_duplicate =
            |error: &SdkError<CreateSecurityGroupError>| error.code() == Some("InvalidGroup.Duplicate");
        let made = match self.runtime.block_on(create.send()) {
            Ok(made) => made.group_id().map(str::to_owned),
            Err(error) if is_duplicate(&error) => {
                // By an earlier try whose answer was lost.
                let request = client.describe_security_groups().filters(filter("group-name", &name));
                let found = request.into_paginator().items().send().try_collect();
                let found = self.call("DescribeSecurityGroups", region, found)?;
                found.first().and_then(|group| group.group_id()).map(str::to_owned)
            }
            Err(error) => return Err(failed("CreateSecurityGroup", region, &error)),
        };
        let group = made.ok_or_else(|| nameless("CreateSecurityGroup", region))?;
        let anyone = |port: &u16| {
            IpPermission::builder()
                .ip_protocol("tcp")
                .from_port((*port).into())
                .to_port((*port).into())
                .ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build())
                .ipv6_ranges(Ipv6Range::builder().cidr_ipv6("::/0").build())
                .build()
        };
        let ports = Some(ports.iter().map(anyone).collect());
        let authorize = client.authorize_security_group_ingress().group_id(&group).set_ip_permissions(ports);
        match self.runtime.block_on(authorize.send()) {
            Ok(_) => {}
            Err(error) if error.code() == Some("InvalidPermission.Duplicate") => {}
            Err(error) => return Err(failed("AuthorizeSecurityGroupIngress", region, &error)),
        }
        groups.insert(key, group.clone());
        Ok(group)
    }
}

impl Cloud for Aws {
    fn regions(&self) -> Result<Vec<String>, CloudError> {
        let home = self.config.region().map_or(FIRST_REGION, |region| region.as_ref());
        // Without `all_regions`, only those that the account may use.
        let answer = self.call("DescribeRegions", home, self.client(home).describe_regions().send())?;
        Ok(answer.regions().iter().filter_map(|region| region.region_name().map(str::to_owned)).collect())
    }

    fn offers(&self, region: &str, query: &Query) -> Result<Vec<Offer>, CloudError> {
        let client = self.client(region);
        let image = self.image(region, query)?;
        let wanted: Vec<String> = match (&query.kinds[..], query.arch.as_str()) {
            ([], "arm64") => SMALL_ARM.map(str::to_owned).into(),
            ([], _) => SMALL.map(str::to_owned).into(),
            (kinds, _) => kinds.into(),
        };
        // Types of other processors are left out here.
        // By a filter, for a name that a region does not know would fail the call.
        let kinds = wanted.iter().fold(Filter::builder().name("instance-type"), |all, kind| all.values(kind));
        let request = client
            .describe_instance_types()
            .filters(filter("processor-info.supported-architecture", &query.arch))
            .filters(kinds.clone().build());
        let types = self.call(
            "DescribeInstanceTypes",
            region,
            request.into_paginator().items().send().try_collect(),
        )?;
        let fits =
            |kind: Option<&InstanceType>| kind.is_some() && types.iter().any(|t| t.instance_type() == kind);

        let mut request =
            client.describe_instance_type_offerings().location_type(LocationType::AvailabilityZone);
        request = request.filters(kinds.build());
        let offered = request.into_paginator().items().send().try_collect();
        let offered = self.call("DescribeInstanceTypeOfferings", region, offered)?;

        let prices = match query.on_demand {
            // Of types that the region does not know there are none to be asked for.
            None if !types.is_empty() => self.spot_prices(region, &types)?,
            _ => HashMap::new(),
        };
        let zones_of_ipv6 = self.zones_of_ipv6(region)?;
        let offers = offered
            .iter()
            .filter(|offer| fits(offer.instance_type()))
            .filter_map(|offer| {
                let (kind, zone) = (offer.instance_type()?, offer.location()?);
                let price = match query.on_demand {
                    Some(price) => price,
                    None => {
                        let in_force = prices.get(&(kind.clone(), zone.to_owned()))?;
                        MicroUsd((in_force.0.saturating_mul(BID)).div_ceil(100))
                    }
                };
                Some(Offer {
                    kind: kind.as_str().to_owned(),
                    zone: zone.to_owned(),
                    price,
                    is_spot: query.on_demand.is_none(),
                    besides: BESIDES,
                    traffic: traffic_price(region),
                    has_ipv6: zones_of_ipv6.contains(zone),
                    image: image.clone(),
                })
            })
            .collect();
        Ok(sorted(offers, &wanted))
    }

    fn examine(&self, region: &str, query: &Query) -> Vec<Finding> {
        let image = self.image(region, query);
        let offers = self.offers(region, query);
        let best = offers.as_ref().ok().and_then(|offers| offers.first().cloned());
        let mut findings = vec![
            Finding { what: "an image of Debian", result: image },
            Finding::best(offers, |said| refused("DescribeInstanceTypeOfferings", region, &said)),
            Finding::ours(self.list(region)),
            Finding { what: "how many there may be", result: self.quota(region, query.on_demand.is_none()) },
        ];
        // AWS says without doing it whether it would.
        let client = self.client(region);
        let none = "00000000000000000";
        let mut buy = client.run_instances().dry_run(true).min_count(1).max_count(1);
        if let Some(best) = &best {
            buy = buy.image_id(&best.image).instance_type(InstanceType::from(best.kind.as_str()));
        }
        findings.extend([
            Finding { what: "buying machines", result: self.dry("RunInstances", region, buy.send()) },
            Finding {
                what: "ending machines",
                result: self.dry(
                    "TerminateInstances",
                    region,
                    client.terminate_instances().dry_run(true).instance_ids(format!("i-{none}")).send(),
                ),
            },
            Finding {
                what: "making security groups",
                result: self.dry(
                    "CreateSecurityGroup",
                    region,
                    client
                        .create_security_group()
                        .dry_run(true)
                        .group_name("eebt-doctor")
                        .description("eebt")
                        .send(),
                ),
            },
            Finding {
                what: "removing security groups",
                result: self.dry(
                    "DeleteSecurityGroup",
                    region,
                    client.delete_security_group().dry_run(true).group_id(format!("sg-{none}")).send(),
                ),
            },
        ]);
        findings
    }

    fn create(&self, order: &Order) -> Result<Machine, CloudError> {
        let Order { region, offer, tags, .. } = order;
        let ports = if order.ssh_key.is_some() { vec![order.port, SSH] } else { vec![order.port] };
        let group = self.group(region, &ports, tags)?;
        let marks = [ResourceType::Instance, ResourceType::Volume].map(|resource| {
            let named = TagSpecification::builder()
                .resource_type(resource)
                .tags(tag("Name", &format!("eebt-{}", tags.id)));
            let tags = tags.pairs().into_iter();
            tags.fold(named, |all, (name, value)| all.tags(tag(&format!("{PREFIX}{name}"), &value))).build()
        });
        let spot = SpotMarketOptions::builder()
            .max_price(offer.price.plain())
            .spot_instance_type(SpotInstanceType::OneTime)
            .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate);
        let spot =
            InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).spot_options(spot.build());
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_tokens(HttpTokensState::Required)
            .http_put_response_hop_limit(1);
        let request = self
            .client(region)
            .run_instances()
            .client_token(&order.token)
            .image_id(&offer.image)
            .instance_type(InstanceType::from(offer.kind.as_str()))
            .placement(Placement::builder().availability_zone(&offer.zone).build())
            .min_count(1)
            .max_count(1)
            .security_group_ids(group)
            .user_data(BASE64.encode(order.user_data.as_bytes()))
            // When it powers off, it is over and costs nothing.
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .metadata_options(metadata.build())
            .set_instance_market_options(offer.is_spot.then(|| spot.build()))
            .set_key_name(order.ssh_key.clone())
            .set_ipv6_address_count(offer.has_ipv6.then_some(1))
            // A busy machine of a t type would else be billed for credits, without a limit.
            .set_credit_specification(
                is_burstable(&offer.kind)
                    .then(|| CreditSpecificationRequest::builder().cpu_credits("standard").build()),
            )
            .set_tag_specifications(Some(marks.into()));
        let answer = match self.runtime.block_on(request.send()) {
            Ok(answer) => answer,
            // What else it depends on has changed since, such as a security group: its tag answers then.
            Err(error) if error.code() == Some(MISMATCH) => {
                let failed = failed("RunInstances", region, &error);
                return self
                    .list(region)?
                    .into_iter()
                    .find(|machine| machine.tags.id == tags.id)
                    .ok_or(failed);
            }
            Err(error) => return Err(failed("RunInstances", region, &error)),
        };
        let bought = answer.instances().first().and_then(machine);
        let bought = bought.ok_or_else(|| nameless("RunInstances", region))?;
        match bought.condition {
            Condition::Alive | Condition::Off => Ok(bought),
            Condition::Gone => Err(CloudError {
                cloud: "aws",
                action: "RunInstances",
                region: region.clone(),
                trouble: Trouble::Gone,
                said: bought.reason.unwrap_or_else(|| "the instance has ended".into()),
                hint: None,
            }),
        }
    }

    fn find(&self, order: &Order) -> Result<Option<Machine>, CloudError> {
        match self.create(order) {
            Ok(machine) => Ok(Some(machine)),
            Err(error) => match error.trouble {
                Trouble::Gone | Trouble::Capacity | Trouble::Quota | Trouble::Refused => Ok(None),
                // That it is not permitted now says nothing of the first time.
                Trouble::Permission | Trouble::Credentials | Trouble::Throttled => Err(error),
                // It differs from the first one, for what it depends on was made anew; and what that bought is long over.
                Trouble::Unknown
                    if error.said.starts_with(MISMATCH)
                        && order.tags.expires + PURGED < SystemTime::now() =>
                {
                    Ok(None)
                }
                Trouble::Unknown => Err(error),
            },
        }
    }

    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError> {
        let request = self.client(region).describe_instances().filters(filter("tag-key", ID));
        let found =
            self.call("DescribeInstances", region, request.into_paginator().items().send().try_collect())?;
        Ok(found.iter().flat_map(|reservation| reservation.instances()).filter_map(machine).collect())
    }

    fn describe(&self, region: &str, name: &str) -> Result<Option<Machine>, CloudError> {
        let request = self.client(region).describe_instances().instance_ids(name);
        let found = match self.runtime.block_on(request.send()) {
            Ok(found) => found,
            Err(error) if error.code() == Some("InvalidInstanceID.NotFound") => return Ok(None),
            Err(error) => return Err(failed("DescribeInstances", region, &error)),
        };
        let found =
            found.reservations().iter().flat_map(|reservation| reservation.instances()).find_map(machine);
        Ok(found.filter(|machine| machine.condition != Condition::Gone))
    }

    fn terminate(&self, region: &str, machines: &[String]) -> Result<(), CloudError> {
        let end = |some: &[String]| {
            let request = self.client(region).terminate_instances().set_instance_ids(Some(some.to_vec()));
            self.call("TerminateInstances", region, request.send()).map(|_| ())
        };
        let all = machines.chunks(BATCH).map(|some| match end(some) {
            // One of them that is not known there lets none of them end.
            Err(error) if error.is_certain() || some.len() == 1 => Err(error),
            Err(_) => super::each(some, |one| end(&[one.to_owned()])),
            Ok(()) => Ok(()),
        });
        all.fold(Ok(()), Result::and)
    }

    fn tidy(&self, region: &str, fleet: &str, attempts: &Attempts<'_>) -> Result<(), FleetError> {
        let client = self.client(region);
        let request = client.describe_security_groups().filters(filter(&format!("tag:{FLEET}"), fleet));
        let groups = self.call(
            "DescribeSecurityGroups",
            region,
            request.into_paginator().items().send().try_collect(),
        )?;
        let attempts = attempts()?;
        for group in &groups {
            let attempt = group.tags().iter().find(|tag| tag.key() == Some(ATTEMPT)).and_then(Tag::value);
            let is_used = attempt.is_some_and(|attempt| attempts.contains(attempt));
            let Some(id) = group.group_id().filter(|_| !is_used) else { continue };
            match self.runtime.block_on(client.delete_security_group().group_id(id).send()) {
                Ok(_) => {}
                // A machine that is about to end has it still, or somebody else was faster.
                Err(error)
                    if matches!(error.code(), Some("DependencyViolation" | "InvalidGroup.NotFound")) => {}
                Err(error) => return Err(failed("DeleteSecurityGroup", region, &error).into()),
            }
        }
        Ok(())
    }
}

/// What a GB costs that leaves this region.
fn traffic_price(region: &str) -> MicroUsd {
    let is_cheap = ["us-east-", "us-west-", "ca-", "eu-"].iter().any(|begin| region.starts_with(begin));
    if is_cheap { TRAFFIC.0 } else { TRAFFIC.1 }
}

/// Does AWS bill this type's processor by credits?
fn is_burstable(kind: &str) -> bool {
    ["t2.", "t3.", "t3a.", "t4g."].iter().any(|family| kind.starts_with(family))
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// A machine of ours; `None` for anybody else's.
fn machine(instance: &Instance) -> Option<Machine> {
    let tag = |name: &str| {
        let mut tags = instance.tags().iter();
        tags.find(|tag| tag.key().and_then(|key| key.strip_prefix(PREFIX)) == Some(name)).and_then(Tag::value)
    };
    let condition = match instance.state()?.name()? {
        InstanceStateName::ShuttingDown | InstanceStateName::Terminated => Condition::Gone,
        // Its disk is paid for.
        InstanceStateName::Stopping | InstanceStateName::Stopped => Condition::Off,
        _ => Condition::Alive,
    };
    Some(Machine {
        name: instance.instance_id()?.to_owned(),
        condition,
        address: instance.public_ip_address().and_then(|ip| ip.parse::<IpAddr>().ok()),
        tags: Tags::read(tag)?,
        bought: instance.launch_time().and_then(|at| SystemTime::try_from(*at).ok()),
        kind: instance.instance_type().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        reason: instance.state_reason().and_then(|reason| reason.message()).map(str::to_owned),
    })
}
