//! Keeps this exit bridge registered with exit-bridge directories, so that clients find it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use eebt_proto::descriptor::to_millis;
use eebt_proto::directory::{DESCRIPTORS, ErrorBody, Registered, Standing, WITHDRAWALS};
use eebt_proto::limits::MAX_VALIDITY;
use eebt_proto::{BridgeDescriptor, BridgeLine, Country, OnionReach, SignedDocument, Withdrawal};
use eebt_tor::{HttpError, OnionConnector, OnionHttp, Reply};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ReachKind};
use crate::keys::BridgeKeys;
use crate::status::Status;

/// Pauses after a failure: the first one, doubled with each in a row, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Pauses between two descriptors, whatever the directory says.
const RENEWALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(5400);

/// How long saying good-bye may take.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(10);

/// What an exit bridge says of itself, and the keys to sign it with.
pub struct Card {
    line: BridgeLine,
    keys: Arc<BridgeKeys>,
    country: Option<Country>,
    capacity: u32,
}

impl Card {
    /// Of the exit bridge with this line.
    pub fn new(line: BridgeLine, keys: Arc<BridgeKeys>, config: &Config) -> Self {
        Self { line, keys, country: config.country, capacity: config.limits.streams }
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.keys.sign(ReachKind::of(&self.line.reach), message)
    }

    fn descriptor(&self, now: SystemTime) -> SignedDocument {
        let published = to_millis(now);
        let longest = published + MAX_VALIDITY;
        let descriptor = BridgeDescriptor {
            line: self.line.clone(),
            published,
            expires: self.line.expires.map_or(longest, |end| end.min(longest)),
            country: self.country,
            capacity: self.capacity,
            software: concat!("eebt-bridge ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        descriptor.sign(|message| self.sign(message))
    }

    fn withdrawal(&self, now: SystemTime) -> SignedDocument {
        let withdrawal = Withdrawal { identity: *self.line.reach.identity(), published: to_millis(now) };
        withdrawal.sign(|message| self.sign(message))
    }
}

/// Why a directory did not take a descriptor.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    /// It could not be asked.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It said no.
    #[error("refused: {0}")]
    Refused(String),
}

/// Registers with all `directories` and renews, until `shutdown`; then withdraws and returns.
pub async fn keep_registered(
    card: Card,
    directories: Vec<OnionReach>,
    connector: Arc<OnionConnector>,
    status: Arc<Status>,
    shutdown: CancellationToken,
) {
    let serving = AtomicU64::new(0);
    let each = directories.into_iter().enumerate().map(|(i, directory)| {
        // A number instead of an address: the log shall not say where we register.
        let number = i + 1;
        let http = OnionHttp::new(Arc::clone(&connector), directory);
        let (card, serving, status, shutdown) = (&card, &serving, &status, &shutdown);
        async move {
            let mut handed_out = false;
            let changed = |now_handed_out: bool, before: &mut bool| {
                if now_handed_out != *before {
                    *before = now_handed_out;
                    let one_more = if now_handed_out { 1 } else { u64::MAX };
                    let n = serving.fetch_add(one_more, Ordering::Relaxed).wrapping_add(one_more);
                    status.set_directories(n);
                }
            };
            tokio::select! {
                () = renew(card, &http, number, |standing| changed(standing, &mut handed_out)) => {}
                () = shutdown.cancelled() => {}
            }
            match tokio::time::timeout(WITHDRAW_TIMEOUT, withdraw(card, &http)).await {
                Ok(Ok(())) => tracing::info!(directory = number, "withdrawn"),
                // The descriptor expires by itself, and a test fails before that.
                Ok(Err(error)) => tracing::info!(directory = number, %error, "not withdrawn"),
                Err(_) => tracing::info!(directory = number, "could not withdraw in time"),
            }
        }
    });
    join_all(each).await;
}

/// Sends one descriptor after the other. Never returns. `handed_out` is told whether clients are given
/// this exit bridge, as far as the directory says.
async fn renew(card: &Card, http: &OnionHttp, number: usize, mut handed_out: impl FnMut(bool)) {
    let mut failures = 0;
    let mut last = None;
    loop {
        let pause = match register(card, http).await {
            Ok(answer) => {
                failures = 0;
                if last.replace(answer.standing) != Some(answer.standing) {
                    tracing::info!(directory = number, standing = %said(answer.standing), "registered");
                }
                handed_out(answer.standing == Standing::Serving);
                let until = answer.renew_before.duration_since(SystemTime::now()).unwrap_or_default();
                until.clamp(*RENEWALS.start(), *RENEWALS.end()).mul_f64(rand::random_range(0.8..1.0))
            }
            Err(error) => {
                tracing::warn!(directory = number, %error, "not registered");
                failures += 1;
                let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
                pause.mul_f64(rand::random_range(0.5..1.0))
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn register(card: &Card, http: &OnionHttp) -> Result<Registered, RegisterError> {
    let reply = http.post(DESCRIPTORS, &card.descriptor(SystemTime::now())).await?;
    Ok(accepted(&reply)?.json()?)
}

/// Says good-bye; once more by another circuit, where the one of the last renewal is broken. Signed anew, for the
/// directory takes each document once, and the first may have arrived.
async fn withdraw(card: &Card, http: &OnionHttp) -> Result<(), RegisterError> {
    let send = async || {
        let withdrawal = card.withdrawal(SystemTime::now());
        http.post_within(WITHDRAW_TIMEOUT / 3, WITHDRAWALS, &withdrawal).await
    };
    let reply = match send().await {
        Ok(reply) => reply,
        Err(_) => send().await?,
    };
    accepted(&reply).map(drop)
}

/// The answer, when it is no refusal.
fn accepted(reply: &Reply) -> Result<&Reply, RegisterError> {
    if reply.status.is_success() {
        return Ok(reply);
    }
    // The text is a stranger's: only the code, which has a known form, goes into the log.
    let code = reply.json::<ErrorBody>().map(|body| body.error.code).unwrap_or_default();
    let plain =
        !code.is_empty() && code.len() <= 40 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    Err(RegisterError::Refused(if plain { code } else { reply.status.to_string() }))
}

/// A standing in words.
fn said(standing: Standing) -> &'static str {
    match standing {
        Standing::Waiting => "waits for its test",
        Standing::Serving => "passed its test",
        Standing::Unreachable => "could not be reached, or could not reach the directory's echo",
        Standing::EgressIsTorRelay => "its egress address is that of a Tor relay",
        Standing::EgressIsSpecial => "its egress address is private",
        Standing::EgressIsShared => "another exit bridge has the same egress address",
    }
}
