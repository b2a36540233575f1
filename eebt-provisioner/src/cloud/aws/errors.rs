//! What EC2's errors mean, and what to try.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::cloud::{CloudError, Trouble};

/// The token was used for another order.
pub(super) const MISMATCH: &str = "IdempotentParameterMismatch";

pub(super) fn refused(action: &'static str, region: &str, said: &str) -> CloudError {
    let (region, said) = (region.to_owned(), said.to_owned());
    CloudError { cloud: "aws", action, region, trouble: Trouble::Refused, said, hint: None }
}

/// An answer without what it must have.
pub(super) fn nameless(action: &'static str, region: &str) -> CloudError {
    let said = "the answer names nothing".to_owned();
    CloudError { cloud: "aws", action, region: region.into(), trouble: Trouble::Unknown, said, hint: None }
}

pub(super) fn failed<E>(action: &'static str, region: &str, error: &SdkError<E>) -> CloudError
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
        other => (Trouble::Unknown, eebt_proto::causes(other)),
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
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" => Trouble::Throttled,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable" | MISMATCH => {
            Trouble::Unknown
        }
        code if code.ends_with("LimitExceeded") || code == "MaxSpotInstanceCountExceeded" => Trouble::Quota,
        // Named by the operator.
        "InvalidKeyPair.NotFound" | "InvalidAMIID.NotFound" => Trouble::Refused,
        // Seen too early: what was just made is not known everywhere yet.
        code if code.ends_with(".NotFound") => Trouble::Unknown,
        _ => Trouble::Refused,
    }
}

pub(super) fn hint(trouble: Trouble, action: &str) -> Option<String> {
    match trouble {
        Trouble::Permission => {
            let service = if action == "GetServiceQuota" { "servicequotas" } else { "ec2" };
            let what = format!("allow {service}:{action} to whoever runs eebt");
            Some(format!("{what}; deploy/aws/iam-policy.json has all it needs"))
        }
        Trouble::Quota => Some(
            "ask for more in Service Quotas (\"All Standard Spot Instance Requests\" or \"Running On-Demand Standard \
             instances\", both in virtual processors), or use more regions"
                .into(),
        ),
        Trouble::Capacity => Some("name more --type or another --region".into()),
        Trouble::Credentials => Some("log in again: `aws sts get-caller-identity` must work".into()),
        Trouble::Throttled => Some("wait a minute: the account makes more calls than it may".into()),
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
            ("RequestLimitExceeded", Trouble::Throttled),
            ("UnauthorizedOperation", Trouble::Permission),
            ("IdempotentInstanceTerminated", Trouble::Gone),
            ("InvalidInstanceID.NotFound", Trouble::Unknown),
            ("InvalidParameterValue", Trouble::Refused),
        ] {
            assert_eq!(trouble(code), expected, "{code}");
        }
    }
}
