//! The requests, and what they are answered. `docs/protocol.md` describes them; the OpenAPI file beside
//! it is held against this router by a test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use eebt_proto::causes;
use eebt_proto::descriptor::to_millis;
use eebt_proto::directory::{
    self as paths, Ask, ErrorBody, ErrorDetail, HandOut, HandedOut, Registered, Report, Standing,
};
use eebt_proto::limits::MAX_HANDED_OUT;
use eebt_proto::special_use::special_use;
use eebt_proto::{
    Attestation, AttestationRequest, DescriptorError, OnionReach, Reach, SignedDocument,
    UnverifiedDescriptor, Withdrawal, from_json,
};
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::HandOutConfig;
use crate::door::{AdmitError, Door, Excess};
use crate::index::Index;
use crate::metrics::{Event, Metrics};
use crate::ring::keyed;
use crate::store::{Partition, Put, Store, StoreError, Withdrawn};

/// Longest body that is read, in bytes.
pub const MAX_BODY: usize = 8 * 1024;

/// How soon an exit bridge that waits for its test should renew, to learn how it went; and one that
/// failed it.
const RENEW_WAITING: Duration = Duration::from_secs(10);
const RENEW_FAILED: Duration = Duration::from_secs(600);

/// An exit bridge is not tested again for a report within this time of its last test.
const REPORT_PAUSE: Duration = Duration::from_secs(60);

/// What the handlers work with.
pub struct Api {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What can be handed out.
    pub index: Arc<Index>,
    /// Who may ask.
    pub door: Door,
    /// The secret that partitions follow from.
    pub secret: [u8; 32],
    /// What clients are given.
    pub hand_out: HandOutConfig,
    /// Most exit bridges of which something is kept, and of those registered without a test that was passed.
    pub max_registered: u64,
    /// See `max_registered`.
    pub max_untested: u64,
    /// Special-use ranges that circuit exit bridges may be in.
    pub allow: Vec<IpNet>,
    /// Where tests go to.
    pub echoes: Vec<SocketAddr>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What attestations are signed with; none are given without it.
    pub seal: Option<Seal>,
}

/// Ed25519 over some bytes, with a key that is kept where this is made.
pub type Sign = dyn Fn(&[u8]) -> [u8; 64] + Send + Sync;

/// The key of the directory's onion service, for attestations.
pub struct Seal {
    /// The onion address, which names the key.
    pub directory: OnionReach,
    /// Signs with it.
    pub sign: Box<Sign>,
}

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), hint: hint.into(), retry_after: None }
    }

    fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message, hint, retry_after } = self;
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message, hint } };
        let mut response = (status, json(&body)).into_response();
        if let Some(after) = retry_after {
            let seconds = after.as_secs() + 1;
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %causes(&error), "a request failed");
        let hint = "nothing was changed; try again in a minute";
        let message = "the directory's database failed";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message, hint)
            .retry_after(Duration::from_secs(60))
    }
}

impl From<DescriptorError> for ApiError {
    fn from(error: DescriptorError) -> Self {
        let status = match error {
            DescriptorError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            DescriptorError::Signature | DescriptorError::NotItsReach => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string(), error.hint())
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Ticket(error) => {
                let hint = format!("read {} and make a new ticket", paths::TICKET_TERMS);
                Self::new(StatusCode::FORBIDDEN, error.code(), error.to_string(), hint)
            }
            AdmitError::Busy => {
                let hint = "come again in some seconds, with the same ticket";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string(), hint)
                    .retry_after(Duration::from_secs(5))
            }
        }
    }
}

impl From<Excess> for ApiError {
    fn from(error: Excess) -> Self {
        let message = error.to_string();
        match error {
            Excess::Rate { retry_after } => {
                let hint = "what was given is good until lease_until; Retry-After says when to come again";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_often", message, hint).retry_after(retry_after)
            }
            Excess::Wishes => {
                let hint = "ask with wishes that were asked with before";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_wishes", message, hint)
            }
        }
    }
}

/// A body in JSON, whose every mistake is answered as our errors are.
struct Json<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body =
            Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_long",
                    format!("the body is longer than {MAX_BODY} bytes"),
                    "docs/protocol.md, section 10, describes the messages; none is as long",
                ),
                _ => ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "body_incomplete",
                    "the body did not arrive",
                    "send as many bytes as Content-Length says, or chunks up to the last one",
                ),
            })?;
        from_json(&body).map(Self).map_err(|error| {
            let hint = "docs/protocol.md describes the messages";
            ApiError::new(StatusCode::BAD_REQUEST, "body_malformed", format!("body: {error}"), hint)
        })
    }
}

fn json(body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The router.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(paths::DESCRIPTORS, post(register))
        .route(paths::WITHDRAWALS, post(withdraw))
        .route(paths::ATTESTATIONS, post(attest))
        .route(paths::TICKET_TERMS, get(terms))
        .route(paths::EXIT_BRIDGES, post(hand_out))
        .route(paths::REPORTS, post(report))
        .method_not_allowed_fallback(async || {
            let message = "not a method of this path";
            let hint =
                "docs/protocol.md, section 10, lists paths and methods; the header Allow has this one's";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_unknown", message, hint)
        })
        .fallback(async || {
            let hint = "docs/protocol.md lists the paths";
            ApiError::new(StatusCode::NOT_FOUND, "path_unknown", "there is nothing at this path", hint)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

async fn register(
    State(api): State<Arc<Api>>,
    Json(signed): Json<SignedDocument>,
) -> Result<Response, ApiError> {
    let now = SystemTime::now();
    let descriptor = UnverifiedDescriptor::parse(&signed)?.verify(now)?;
    if let Reach::Circuit(reach) = &descriptor.line.reach {
        let closed = |ip| special_use(ip).is_some() && !api.allow.iter().any(|net| net.contains(&ip));
        if reach.addresses.iter().any(|addr| closed(addr.ip())) {
            let message = "bridge_line: address: is not a public address";
            let hint = "an exit bridge behind NAT can be an onion exit bridge";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "address_special", message, hint));
        }
    }
    let full = api.metrics.kept() >= api.max_registered || api.metrics.untested() >= api.max_untested;
    if full && api.store.find(descriptor.identity()).await?.is_none() {
        let message = "no more exit bridges can be registered here now";
        let hint = "places become free again; register with another directory meanwhile";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "full", message, hint)
            .retry_after(Duration::from_secs(600)));
    }
    let partition = partition(&api.secret, descriptor.identity(), &api.hand_out);
    match api.store.put(&descriptor, partition, now).await? {
        Put::Replayed => Err(ApiError::new(
            StatusCode::CONFLICT,
            "descriptor_replayed",
            "published: a descriptor that was signed at the same time or later is here already",
            "sign a new one",
        )),
        Put::Kept { standing, new } => {
            api.metrics.count(Event::Registered);
            if new {
                api.metrics.one_more();
            }
            // Half of the time that is left, or when there may be news.
            let left = descriptor.expires.duration_since(now).unwrap_or_default() / 2;
            let pause = match standing {
                Standing::Serving => left,
                Standing::Waiting => left.min(RENEW_WAITING),
                _ => left.min(RENEW_FAILED),
            };
            Ok(json(&Registered { standing, renew_before: now + pause, echoes: api.echoes.clone() }))
        }
    }
}

async fn withdraw(
    State(api): State<Arc<Api>>,
    Json(signed): Json<SignedDocument>,
) -> Result<StatusCode, ApiError> {
    let now = SystemTime::now();
    let withdrawal = Withdrawal::verify(&signed, now)?;
    match api.store.withdraw(&withdrawal.identity, withdrawal.published, now).await? {
        Withdrawn::Done => {
            api.metrics.count(Event::Withdrawn);
            Ok(StatusCode::NO_CONTENT)
        }
        Withdrawn::Replayed => Err(ApiError::new(
            StatusCode::CONFLICT,
            "descriptor_replayed",
            "published: something that was signed at the same time or later is here already",
            "sign a new withdrawal, after what was signed last",
        )),
        Withdrawn::Unknown => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "exit_bridge_unknown",
            "identity: is not registered here",
            "there is nothing to withdraw; is it another directory that it registered with?",
        )),
    }
}

/// Says that an exit bridge serves, and since when that was said without a gap. Nothing is kept of it: what was said
/// before is the exit bridge's to show.
async fn attest(
    State(api): State<Arc<Api>>,
    Json(signed): Json<SignedDocument>,
) -> Result<Response, ApiError> {
    let Some(seal) = &api.seal else {
        let message = "this directory gives no attestations";
        let hint = "there is nothing to do; what you are and serve does not depend on it";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_offered", message, hint));
    };
    let now = SystemTime::now();
    let request = AttestationRequest::verify(&signed, now)?;
    if request.directory != seal.directory {
        let message = "directory: is not this one";
        let hint = "sign a request for each directory that is asked";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "directory_other", message, hint));
    }
    let Some(record) = api.store.find(&request.identity).await? else {
        let message = "identity: is not registered here";
        let hint = "register first";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "exit_bridge_unknown", message, hint));
    };
    if request.published <= record.published {
        let message = "published: something that was signed at the same time or later is here already";
        let hint = "sign a new request, after what was signed last";
        return Err(ApiError::new(StatusCode::CONFLICT, "descriptor_replayed", message, hint));
    }
    // Who may be handed out passed its last test, and not long ago.
    let live = record.test.live_until.min(record.expires) > now;
    let egress = record.test.egress.filter(|_| live && record.test.standing == Standing::Serving);
    let Some(egress) = egress else {
        let message = "the exit bridge did not pass its last test, or had none yet";
        let hint = "ask again when a renewal is answered with the standing serving";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_serving", message, hint));
    };
    let (identity, directory) = (request.identity, seal.directory.clone());
    let mut seen = Attestation { identity, egress, from: to_millis(now), until: to_millis(now), directory };
    if let Some(previous) = &request.previous {
        seen = seen.extending(previous);
    }
    api.metrics.count(Event::Attested);
    Ok(json(&seen.sign(&seal.sign)))
}

async fn terms(State(api): State<Arc<Api>>) -> Response {
    json(&api.door.terms(SystemTime::now()))
}

async fn hand_out(State(api): State<Arc<Api>>, Json(ask): Json<Ask>) -> Result<Response, ApiError> {
    let now = SystemTime::now();
    let ticket = api.door.admit(&ask.ticket, now).await?;
    api.door.count_ask(ticket, &ask.wishes)?;
    let exit_bridges: Vec<HandedOut> = api
        .index
        .ring()
        .choose(&ticket, &ask.wishes, MAX_HANDED_OUT, now)
        .into_iter()
        .map(|m| HandedOut { bridge_line: m.line.clone(), country: m.country, speed: m.speed })
        .collect();
    api.metrics.count(if exit_bridges.is_empty() { Event::HandedOutNone } else { Event::HandedOut });
    Ok(json(&HandOut { exit_bridges, lease_until: now + api.hand_out.lease }))
}

async fn report(State(api): State<Arc<Api>>, Json(report): Json<Report>) -> Result<StatusCode, ApiError> {
    let now = SystemTime::now();
    let ticket = api.door.admit(&report.ticket, now).await?;
    let wishes = api.door.count_report(ticket)?;
    // Only for what it was given, or anybody could have anybody tested all the time.
    let was_given = {
        let ring = api.index.ring();
        let given = wishes.iter().flat_map(|wishes| ring.choose(&ticket, wishes, MAX_HANDED_OUT, now));
        given.into_iter().any(|m| *m.line.reach.identity() == report.identity)
    };
    if was_given {
        api.store.hurry(&report.identity, now - REPORT_PAUSE, now).await?;
    }
    api.metrics.count(Event::Reported);
    // The same answer for one that was not given: a report is no way to ask who is registered.
    Ok(StatusCode::NO_CONTENT)
}

/// Who is given an exit bridge: it follows from its identity and the secret, so that nobody can choose.
/// The reserve is counted from one end and the private ones from the other: when the reserve is lowered,
/// those that leave it become open, and nothing else moves.
pub fn partition(secret: &[u8; 32], identity: &[u8; 32], config: &HandOutConfig) -> Partition {
    let percent = keyed(secret, b"partition", identity, 0) % 100;
    if percent < u64::from(config.reserve) {
        Partition::Reserve
    } else if percent + u64::from(config.private) >= 100 {
        Partition::Private
    } else {
        Partition::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_their_shares_and_nobody_chooses() {
        let config = HandOutConfig { reserve: 10, private: 20, ..HandOutConfig::default() };
        let count = |secret: u8| {
            let mut counts = [0; 3];
            for n in 0..10_000u32 {
                let mut identity = [0; 32];
                identity[..4].copy_from_slice(&n.to_be_bytes());
                counts[partition(&[secret; 32], &identity, &config) as usize] += 1;
            }
            counts
        };
        let [open, reserve, private] = count(1);
        assert!((6800..7200).contains(&open) && (900..1100).contains(&reserve), "{open} {reserve} {private}");
        assert_ne!(count(1), count(2), "another secret, other partitions");
    }

    #[test]
    fn lowering_the_reserve_opens_no_private_pool() {
        let before = HandOutConfig { reserve: 10, private: 20, ..HandOutConfig::default() };
        let after = HandOutConfig { reserve: 0, ..before.clone() };
        for n in 0..255 {
            match (partition(&[1; 32], &[n; 32], &before), partition(&[1; 32], &[n; 32], &after)) {
                (Partition::Reserve, now) => assert_eq!(now, Partition::Open),
                (then, now) => assert_eq!(now, then),
            }
        }
    }
}
