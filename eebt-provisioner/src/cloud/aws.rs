//! The cloud `aws`: EC2 Spot Instances.
//!
//! One `RunInstances` for each exit bridge: its keys are in its own user-data, and its `ClientToken` answers for it alone.

use std::collections::HashMap;
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
    InstanceStateName, InstanceType, IpPermission, IpRange, Ipv6Range, LocationType, MarketType, Placement,
    ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag, TagSpecification,
};
use data_encoding::BASE64;
use tokio::runtime::Runtime;

use super::{
    Attempts, Cloud, CloudError, Condition, Finding, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble,
};
use crate::fleet::FleetError;

/// Who makes Debian's images (the account is the same in all regions of the public cloud; see Debian's wiki, "Cloud").
const DEBIAN: &str = "136693071363";
/// The images that are looked for.
const RELEASE: &str = "debian-13";

/// Tags.
const FLEET: &str = "eebt:fleet";
const ID: &str = "eebt:id";
const ATTEMPT: &str = "eebt:attempt";
const EXPIRES: &str = "eebt:expires";
const COST: &str = "eebt:cost";

/// A public IPv4 address costs so much for an hour, and the 8 GB of a Debian image's disk (gp3, where it is dearest).
const BESIDES: MicroUsd = MicroUsd(5_000 + 1_700);
/// A GB that leaves: where it is cheapest, and at most.
const TRAFFIC: (MicroUsd, MicroUsd) = (MicroUsd(90_000), MicroUsd(154_000));

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
pub struct Aws {
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
    pub fn connect() -> Result<Self, CloudError> {
        let none = |said: String| {
            CloudError {
            cloud: "aws",
            action: "credentials",
            region: "any region".into(),
            trouble: Trouble::Credentials,
            said,
            hint: Some("`aws sts get-caller-identity` must work: set AWS_PROFILE, or log in with `aws configure sso`".into()),
        }
        };
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
        runtime.block_on(provider.provide_credentials()).map_err(|error| none(crate::causes(&error)))?;
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

    /// The newest Debian image for these processors.
    fn image(&self, region: &str, arch: &str) -> Result<String, CloudError> {
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

    /// The security group of an attempt, which lets in one port. Made where there is none.
    fn group(&self, region: &str, port: u16, tags: &Tags) -> Result<String, CloudError> {
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
        let anyone = IpPermission::builder()
            .ip_protocol("tcp")
            .from_port(port.into())
            .to_port(port.into())
            .ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build())
            .ipv6_ranges(Ipv6Range::builder().cidr_ipv6("::/0").build());
        let authorize =
            client.authorize_security_group_ingress().group_id(&group).ip_permissions(anyone.build());
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
        let image = match &query.image {
            Some(image) => image.clone(),
            None => self.image(region, &query.arch)?,
        };
        // Types of other processors are left out here.
        // By a filter, for a name that a region does not know would fail the call.
        let kinds =
            query.kinds.iter().fold(Filter::builder().name("instance-type"), |all, kind| all.values(kind));
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

        let mut request = client.describe_spot_price_history().product_descriptions("Linux/UNIX");
        for kind in &query.kinds {
            request = request.instance_types(InstanceType::from(kind.as_str()));
        }
        // From now on: the price in force, once for each zone.
        let request = request.start_time(SystemTime::now().into());
        let prices = request.into_paginator().items().send().try_collect();
        let prices = self.call("DescribeSpotPriceHistory", region, prices)?;
        // The latest one counts, should there be several.
        let mut in_force: HashMap<(&InstanceType, &str), (i64, MicroUsd)> = HashMap::new();
        for price in &prices {
            let (Some(kind), Some(zone)) = (price.instance_type(), price.availability_zone()) else {
                continue;
            };
            let Some(usd) = price.spot_price().and_then(|text| text.parse().ok()) else { continue };
            let at = price.timestamp().map_or(0, |at| at.secs());
            let known = in_force.entry((kind, zone)).or_insert((at, usd));
            if at > known.0 {
                *known = (at, usd);
            }
        }
        let mut offers: Vec<Offer> = offered
            .iter()
            .filter(|offer| fits(offer.instance_type()))
            .filter_map(|offer| {
                let (kind, zone) = (offer.instance_type()?, offer.location()?);
                let (_, price) = *in_force.get(&(kind, zone))?;
                let price = MicroUsd((price.0.saturating_mul(BID)).div_ceil(100));
                let (kind, zone, image) = (kind.as_str().to_owned(), zone.to_owned(), image.clone());
                Some(Offer { kind, zone, price, besides: BESIDES, image })
            })
            .collect();
        let place = |kind: &String| query.kinds.iter().position(|wanted| wanted == kind);
        offers.sort_by(|a, b| (a.price, place(&a.kind), &a.zone).cmp(&(b.price, place(&b.kind), &b.zone)));
        Ok(offers)
    }

    fn examine(&self, region: &str, query: &Query) -> Vec<Finding> {
        let image = match &query.image {
            Some(image) => Ok(image.clone()),
            None => self.image(region, &query.arch),
        };
        let offers = self.offers(region, query);
        let best = offers.as_ref().ok().and_then(|offers| offers.first().cloned());
        let mut findings = vec![
            Finding { what: "an image of Debian", result: image },
            Finding {
                what: "a type that can be had",
                result: offers.and_then(|offers| match offers.first() {
                    Some(best) => Ok(format!(
                        "{} types and zones; {} in {}: {} an hour",
                        offers.len(),
                        best.kind,
                        best.zone,
                        best.per_hour()
                    )),
                    None => Err(refused("DescribeSpotPriceHistory", region, "none of the types can be had")),
                }),
            },
            Finding {
                what: "listing machines",
                result: self.list(region).map(|all| format!("{} of this account's are ours", all.len())),
            },
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

    fn traffic_price(&self, region: &str) -> MicroUsd {
        let is_cheap = ["us-east-", "us-west-", "ca-", "eu-"].iter().any(|begin| region.starts_with(begin));
        if is_cheap { TRAFFIC.0 } else { TRAFFIC.1 }
    }

    fn create(&self, order: &Order) -> Result<Machine, CloudError> {
        let Order { region, offer, tags, .. } = order;
        let group = self.group(region, order.port, tags)?;
        let expires = humantime::format_rfc3339_seconds(tags.expires).to_string();
        let marks = [ResourceType::Instance, ResourceType::Volume].map(|resource| {
            TagSpecification::builder()
                .resource_type(resource)
                .tags(tag("Name", &format!("eebt-{}", tags.id)))
                .tags(tag(FLEET, &tags.fleet))
                .tags(tag(ID, &tags.id))
                .tags(tag(ATTEMPT, &tags.attempt))
                .tags(tag(EXPIRES, &expires))
                .tags(tag(COST, &tags.cost.to_string()))
                .build()
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
            .instance_market_options(spot.build())
            // A busy machine of a t type would else be billed for credits, without a limit.
            .set_credit_specification(
                is_burstable(&offer.kind)
                    .then(|| CreditSpecificationRequest::builder().cpu_credits("standard").build()),
            )
            .set_tag_specifications(Some(marks.into()));
        let answer = match self.runtime.block_on(request.send()) {
            Ok(answer) => answer,
            // What else it depends on has changed since, such as a security group: its tag answers then.
            Err(error) if error.code() == Some("IdempotentParameterMismatch") => {
                let failed = failed("RunInstances", region, &error);
                return self.list(region)?.into_iter().find(|machine| machine.id == tags.id).ok_or(failed);
            }
            Err(error) => return Err(failed("RunInstances", region, &error)),
        };
        let bought = answer.instances().first().and_then(machine);
        let bought = bought.ok_or_else(|| nameless("RunInstances", region))?;
        match bought.condition {
            Condition::Alive => Ok(bought),
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

    fn list(&self, region: &str) -> Result<Vec<Machine>, CloudError> {
        let request = self.client(region).describe_instances().filters(filter("tag-key", ID));
        let found =
            self.call("DescribeInstances", region, request.into_paginator().items().send().try_collect())?;
        Ok(found.iter().flat_map(|reservation| reservation.instances()).filter_map(machine).collect())
    }

    fn terminate(&self, region: &str, machine: &str) -> Result<(), CloudError> {
        let request = self.client(region).terminate_instances().instance_ids(machine);
        self.call("TerminateInstances", region, request.send()).map(|_| ())
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
    let tag = |key| instance.tags().iter().find(|tag| tag.key() == Some(key)).and_then(Tag::value);
    let condition = match instance.state()?.name()? {
        InstanceStateName::ShuttingDown | InstanceStateName::Terminated => Condition::Gone,
        _ => Condition::Alive,
    };
    Some(Machine {
        name: instance.instance_id()?.to_owned(),
        condition,
        address: instance.public_ip_address().and_then(|ip| ip.parse::<IpAddr>().ok()),
        fleet: tag(FLEET).unwrap_or_default().to_owned(),
        id: tag(ID)?.to_owned(),
        attempt: tag(ATTEMPT).unwrap_or_default().to_owned(),
        expires: tag(EXPIRES).and_then(|text| humantime::parse_rfc3339(text).ok()),
        cost: tag(COST).and_then(|text| text.parse().ok()).unwrap_or_default(),
        bought: instance.launch_time().and_then(|at| SystemTime::try_from(*at).ok()),
        kind: instance.instance_type().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        reason: instance.state_reason().and_then(|reason| reason.message()).map(str::to_owned),
    })
}

fn refused(action: &'static str, region: &str, said: &str) -> CloudError {
    let (region, said) = (region.to_owned(), said.to_owned());
    CloudError { cloud: "aws", action, region, trouble: Trouble::Refused, said, hint: None }
}

/// An answer without what it must have.
fn nameless(action: &'static str, region: &str) -> CloudError {
    let said = "the answer names nothing".to_owned();
    CloudError { cloud: "aws", action, region: region.into(), trouble: Trouble::Unknown, said, hint: None }
}

fn failed<E>(action: &'static str, region: &str, error: &SdkError<E>) -> CloudError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let (trouble, said) = match error {
        SdkError::ServiceError(answer) => {
            let code = error.code().unwrap_or("an error without a code");
            let is_theirs = answer.raw().status().is_server_error();
            let message = error.message().unwrap_or_default();
            // EC2 appends an encrypted text of a thousand letters to what it does not permit.
            let message = message.split(" Encoded authorization failure message").next().unwrap_or_default();
            let trouble = match trouble(code) {
                // Something broke there, and nobody knows what was done before it did.
                Trouble::Refused if is_theirs => Trouble::Unknown,
                trouble => trouble,
            };
            (trouble, format!("{code}: {message}"))
        }
        other => (Trouble::Unknown, crate::causes(other)),
    };
    let hint = match error.code() {
        Some("AuthFailure.ServiceLinkedRoleCreationNotPermitted") => Some(
            "once for each account: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
                .into(),
        ),
        Some("VPCIdNotSpecified" | "DefaultVpcDoesNotExist") => {
            Some(format!("once for each region: aws ec2 create-default-vpc --region {region}"))
        }
        _ => hint(trouble, action),
    };
    CloudError { cloud: "aws", action, region: region.into(), trouble, said, hint }
}

/// What an error code means (EC2 API reference, "Error codes").
fn trouble(code: &str) -> Trouble {
    match code {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientAddressCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientVolumeCapacity"
        | "SpotMaxPriceTooLow"
        | "Unsupported" => Trouble::Capacity,
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => Trouble::Permission,
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => Trouble::Permission,
        "AuthFailure"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "RequestExpired" => Trouble::Credentials,
        "IdempotentInstanceTerminated" => Trouble::Gone,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "InternalError"
        | "InternalFailure"
        | "Unavailable"
        | "ServiceUnavailable"
        | "IdempotentParameterMismatch" => Trouble::Unknown,
        code if code.ends_with("LimitExceeded") || code == "MaxSpotInstanceCountExceeded" => Trouble::Quota,
        // Seen too early: what was just made is not known everywhere yet.
        code if code.ends_with(".NotFound") => Trouble::Unknown,
        _ => Trouble::Refused,
    }
}

fn hint(trouble: Trouble, action: &str) -> Option<String> {
    match trouble {
        Trouble::Permission => Some(format!("allow ec2:{action} to whoever runs eebt; deploy/aws/iam-policy.json has all it needs")),
        Trouble::Quota => Some(
            "ask for more in Service Quotas (\"All Standard Spot Instance Requests\" counts virtual processors), or \
             use more regions"
                .into(),
        ),
        Trouble::Capacity => Some("name more --type or another --region".into()),
        Trouble::Credentials => Some("log in again: `aws sts get-caller-identity` must work".into()),
        Trouble::Unknown => Some("run the same command again; what was begun is taken up".into()),
        Trouble::Gone | Trouble::Refused => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_told_apart() {
        for (code, expected) in [
            ("InsufficientInstanceCapacity", Trouble::Capacity),
            ("VcpuLimitExceeded", Trouble::Quota),
            ("MaxSpotInstanceCountExceeded", Trouble::Quota),
            // "Limit exceeded", and yet no quota.
            ("RequestLimitExceeded", Trouble::Unknown),
            ("UnauthorizedOperation", Trouble::Permission),
            ("IdempotentInstanceTerminated", Trouble::Gone),
            ("InvalidInstanceID.NotFound", Trouble::Unknown),
            ("InvalidParameterValue", Trouble::Refused),
        ] {
            assert_eq!(trouble(code), expected, "{code}");
        }
    }
}
