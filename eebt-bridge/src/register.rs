//! Keeps this exit bridge registered with exit-bridge directories, so that clients find it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use eebt_proto::descriptor::to_millis;
use eebt_proto::directory::{ATTESTATIONS, DESCRIPTORS, ErrorBody, Registered, Standing, WITHDRAWALS};
use eebt_proto::limits::{MAX_CLOCK_SKEW, MAX_VALIDITY};
use eebt_proto::{
    Attestation, AttestationRequest, BridgeDescriptor, BridgeLine, Country, OnionReach, SignedDocument,
    Withdrawal,
};
use eebt_tor::{HttpError, OnionConnector, OnionHttp, Reply};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ReachKind};
use crate::consensus::Consensus;
use crate::keys::BridgeKeys;
use crate::status::Status;

/// Pauses after a failure: the first one, doubled with each in a row, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Pauses between two descriptors, whatever the directory says.
const RENEWALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(5400);

/// How long saying good-bye may take: the last attestation, and the withdrawal, twice.
const GOOD_BYE: Duration = Duration::from_secs(10);
const GOOD_BYE_PART: Duration = Duration::from_secs(3);

/// How long the answer with an attestation may take while there is time.
const ATTEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What an exit bridge says of itself, and the keys to sign it with.
pub struct Card {
    line: BridgeLine,
    keys: Arc<BridgeKeys>,
    country: Option<Country>,
    capacity: u32,
    attest: bool,
}

impl Card {
    /// Of the exit bridge with this line.
    pub fn new(line: BridgeLine, keys: Arc<BridgeKeys>, config: &Config) -> Self {
        Self { line, keys, country: config.country, capacity: config.limits.streams, attest: config.attest }
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

    fn request(
        &self,
        directory: &OnionReach,
        previous: Option<&SignedDocument>,
        now: SystemTime,
    ) -> SignedDocument {
        let request = AttestationRequest {
            identity: *self.line.reach.identity(),
            directory: directory.clone(),
            published: to_millis(now),
            previous: previous.cloned(),
        };
        request.sign(|message| self.sign(message))
    }
}

/// Why a directory did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    /// It could not be asked.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It said no.
    #[error("refused: {0}")]
    Refused(String),
    /// Its attestation is not its own, or not about us.
    #[error("its attestation is not usable")]
    Attestation,
}

/// One directory that we register with.
struct Place<'a> {
    card: &'a Card,
    http: OnionHttp,
    /// Instead of its address: the log shall not say where we register.
    number: usize,
    status: &'a Status,
    consensus: &'a Consensus,
    /// What it said last of when we served, if it did, and said so since.
    attestation: Option<SignedDocument>,
}

/// Registers with all `directories` and renews, until `shutdown`; then withdraws and returns.
pub async fn keep_registered(
    card: Card,
    directories: Vec<OnionReach>,
    connector: Arc<OnionConnector>,
    status: Arc<Status>,
    consensus: Arc<Consensus>,
    shutdown: CancellationToken,
) {
    let serving = AtomicU64::new(0);
    let each = directories.into_iter().enumerate().map(|(i, directory)| {
        let http = OnionHttp::new(Arc::clone(&connector), directory);
        let (card, serving, status, shutdown) = (&card, &serving, &status, &shutdown);
        let consensus = &consensus;
        let mut place = Place { card, http, number: i + 1, status, consensus, attestation: None };
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
                () = place.renew(|standing| changed(standing, &mut handed_out)) => {}
                () = shutdown.cancelled() => {}
            }
            let directory = place.number;
            match tokio::time::timeout(GOOD_BYE, place.say_good_bye(handed_out)).await {
                Ok(Ok(())) => tracing::info!(directory, "withdrawn"),
                // The descriptor expires by itself, and a test fails before that.
                Ok(Err(error)) => tracing::info!(directory, %error, "not withdrawn"),
                Err(_) => tracing::info!(directory, "could not withdraw in time"),
            }
        }
    });
    join_all(each).await;
}

impl Place<'_> {
    /// Sends one descriptor after the other. Never returns. `handed_out` is told whether clients are given
    /// this exit bridge, as far as the directory says.
    async fn renew(&mut self, mut handed_out: impl FnMut(bool)) {
        let mut failures = 0;
        let mut last = None;
        loop {
            let pause = match self.register().await {
                Ok(answer) => {
                    failures = 0;
                    self.consensus.set_echoes(self.number, answer.echoes);
                    if last.replace(answer.standing) != Some(answer.standing) {
                        let standing = said(answer.standing);
                        tracing::info!(directory = self.number, %standing, "registered");
                    }
                    let serving = answer.standing == Standing::Serving;
                    handed_out(serving);
                    // When we did not serve for a while, the next attestation shall not say that we did.
                    if serving {
                        self.attest(ATTEST_TIMEOUT).await;
                    } else {
                        self.attestation = None;
                    }
                    let until = answer.renew_before.duration_since(SystemTime::now()).unwrap_or_default();
                    until.clamp(*RENEWALS.start(), *RENEWALS.end()).mul_f64(rand::random_range(0.8..1.0))
                }
                Err(error) => {
                    tracing::warn!(directory = self.number, %error, "not registered");
                    failures += 1;
                    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
                    pause.mul_f64(rand::random_range(0.5..1.0))
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn register(&self) -> Result<Registered, RegisterError> {
        let reply = self.http.post(DESCRIPTORS, &self.card.descriptor(SystemTime::now())).await?;
        Ok(accepted(reply)?.json()?)
    }

    /// Asks for the directory's word that we serve, where that is wanted. Having none harms nothing.
    async fn attest(&mut self, limit: Duration) {
        if !self.card.attest {
            return;
        }
        let directory = self.number;
        match self.ask_for_attestation(limit).await {
            Ok((attestation, seen)) => {
                if seen.from == seen.until {
                    tracing::info!(directory, "attested");
                } else {
                    tracing::debug!(directory, "attested for longer");
                }
                self.consensus.set_seen(directory, seen.egress);
                self.status.set_attestation(directory, attestation.clone());
                self.attestation = Some(attestation);
            }
            Err(error) => tracing::info!(directory, %error, "not attested"),
        }
    }

    async fn ask_for_attestation(
        &self,
        limit: Duration,
    ) -> Result<(SignedDocument, Attestation), RegisterError> {
        let directory = self.http.service();
        let request = || self.card.request(directory, self.attestation.as_ref(), SystemTime::now());
        let signed: SignedDocument = self.send(limit, ATTESTATIONS, request).await?.json()?;
        let seen = Attestation::verify(&signed).map_err(|_| RegisterError::Attestation)?;
        let ours = seen.directory == *directory && seen.identity == *self.card.line.reach.identity();
        let ours = ours && seen.until <= SystemTime::now() + MAX_CLOCK_SKEW;
        ours.then_some((signed, seen)).ok_or(RegisterError::Attestation)
    }

    async fn say_good_bye(&mut self, serving: bool) -> Result<(), RegisterError> {
        if serving && tokio::time::timeout(GOOD_BYE_PART, self.attest(GOOD_BYE_PART)).await.is_err() {
            tracing::info!(directory = self.number, "could not be attested in time");
        }
        let withdrawal = || self.card.withdrawal(SystemTime::now());
        self.send(GOOD_BYE_PART, WITHDRAWALS, withdrawal).await.map(drop)
    }

    /// Sends a document; once more by another circuit, where the one of the last renewal is broken. Signed anew, for
    /// the directory takes each document once, and the first may have arrived.
    async fn send(
        &self,
        limit: Duration,
        path: &str,
        document: impl Fn() -> SignedDocument + Sync,
    ) -> Result<Reply, RegisterError> {
        let send = async || self.http.post_within(limit, path, &document()).await;
        accepted(match send().await {
            Ok(reply) => reply,
            Err(_) => send().await?,
        })
    }
}

/// The answer, when it is no refusal.
fn accepted(reply: Reply) -> Result<Reply, RegisterError> {
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
