//! The sagas of machines in clouds: bought, at work, ended. Whatever is begun here and not finished is finished or
//! unwound by the next `eebt`, by what the ledger and the cloud say together: see `reconcile.rs`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use super::cost::{SPENDING_TIME, cost};
use super::reconcile::SETTLE;
use super::user_data::{self, Program};
use super::{Cloud, CloudError, Cost, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble};
use crate::crash_point;
use crate::fleet::Fleet;
use crate::folder::FolderError;
use crate::instance::{Instance, Provider, Purchase, State};
use crate::ledger::{LedgerError, Step};
use crate::local::{self, BridgeConfig, Settings};
use crate::plan::PORTS;
use crate::raise::{Failed, RaiseError, new_id};

/// Most offers that are tried for one machine.
const MAX_OFFERS: usize = 6;
/// Where an exit bridge listens in a guest, and where its status page is, which has nothing else there.
pub(super) fn in_guest(port: u16) -> (SocketAddr, SocketAddr) {
    (SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9100))
}

/// What the operator wants bought.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// From whom.
    pub provider: Provider,
    /// Where; they are used in turn.
    pub regions: Vec<String>,
    /// What.
    pub query: Query,
    /// How many.
    pub count: u16,
    /// Most machines at once.
    pub max_count: usize,
    /// Most that may be spent in [`SPENDING_TIME`], what is bought now included.
    pub max_spend: MicroUsd,
    /// How many bytes each may carry in its life.
    pub traffic: u64,
    /// Most for one machine and hour, if that is limited.
    pub max_price: Option<MicroUsd>,
    /// The program that they run.
    pub program: Program,
    /// Who may log in: the cloud's name for a key.
    pub ssh_key: Option<String>,
    /// What all exit bridges of this purchase have in common.
    pub settings: Settings,
}

/// Why nothing is bought.
#[derive(Debug, thiserror::Error)]
pub enum BuyError {
    /// The cloud.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The state folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is no such region, or not for this account.
    #[error("--region: {0} is none of this account's")]
    Region(String),
    /// Nothing to buy.
    #[error("--type: none of {kinds} can be had in {region}{}", .max_price.map(|p| format!(" for {p} an hour or less")).unwrap_or_default())]
    NoOffer {
        /// What was looked for.
        kinds: String,
        /// Where.
        region: String,
        /// For how much.
        max_price: Option<MicroUsd>,
    },
    /// There are enough.
    #[error("--max-count: {live} machines are there, {count} more would be above {max}")]
    TooMany {
        /// How many there are.
        live: usize,
        /// How many more.
        count: u16,
        /// How many there may be.
        max: usize,
    },
    /// There is not enough money.
    #[error("--max-spend: {spent} of the last 30 days and {more} for this would be above {max}")]
    TooDear {
        /// What was spent, or is promised to machines that live.
        spent: MicroUsd,
        /// What this would cost.
        more: MicroUsd,
        /// What it may be.
        max: MicroUsd,
    },
}

impl BuyError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cloud(err) => err.hint.clone(),
            Self::Ledger(err) => err.hint(),
            Self::Folder(_) => Some("choose a folder that you may write to with --state-dir".into()),
            Self::Region(_) => Some("`eebt doctor PROVIDER` lists them".into()),
            Self::NoOffer { .. } => Some("name other types, another region, or a higher --max-price".into()),
            Self::TooMany { .. } => Some("`eebt down` ends some; a higher --max-count allows more".into()),
            Self::TooDear { .. } => {
                Some("a shorter --lifetime, a lower --count or less --traffic costs less; `eebt cost` shows what was spent".into())
            }
        }
    }
}

/// What is going to be bought: for each region its offers, cheapest first.
pub type Offers = BTreeMap<String, Vec<Offer>>;

impl Fleet {
    /// The cloud of this provider, connected to at the first use.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn cloud(&self, provider: Provider) -> Result<&dyn Cloud, CloudError> {
        self.clouds.get(provider)
    }

    /// Asks what can be had. Buys nothing.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn offers(&self, wanted: &Wanted) -> Result<Offers, BuyError> {
        let cloud = self.cloud(wanted.provider)?;
        let known = cloud.regions()?;
        let mut all = Offers::new();
        for region in &wanted.regions {
            if !known.contains(region) {
                return Err(BuyError::Region(region.clone()));
            }
            let mut offers = cloud.offers(region, &wanted.query)?;
            offers.retain(|offer| wanted.max_price.is_none_or(|most| offer.per_hour() <= most));
            offers.truncate(MAX_OFFERS);
            if offers.is_empty() {
                let kinds = match &wanted.query.kinds[..] {
                    [] => "the small ones".to_owned(),
                    kinds => kinds.join(", "),
                };
                let region = region.clone();
                return Err(BuyError::NoOffer { kinds, region, max_price: wanted.max_price });
            }
            all.insert(region.clone(), offers);
        }
        Ok(all)
    }

    /// Writes down what is going to be bought, if count and money allow it. With `is_plan` it is only looked whether
    /// they do.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn reserve_machines(
        &self,
        wanted: &Wanted,
        offers: &Offers,
        now: SystemTime,
        expires: impl Fn() -> SystemTime,
        is_plan: bool,
    ) -> Result<(Vec<Instance>, MicroUsd), BuyError> {
        let (mut more, mut planned) = (MicroUsd::default(), Vec::new());
        self.dir.note_cloud(&wanted.provider.to_string())?;
        let written = self.ledger.reserve(Some(now - SPENDING_TIME), |rows| {
            let machines = |row: &&Instance| row.purchase.is_some() && row.ended.is_none();
            let live = rows.iter().filter(machines).count();
            if live + usize::from(wanted.count) > wanted.max_count {
                return Err(BuyError::TooMany { live, count: wanted.count, max: wanted.max_count });
            }
            // All of one purchase listen on one port, which nobody can guess from another one's.
            let (attempt, port) = (new_id(), rand::random_range(PORTS));
            for (region, _) in wanted.regions.iter().cycle().zip(0..wanted.count) {
                // No offer that is tried costs more.
                let dearest =
                    offers.get(region).and_then(|offers| offers.iter().max_by_key(|offer| offer.per_hour()));
                let Some(offer) = dearest else { continue };
                let (provider, life) = (wanted.provider, now..expires());
                planned.push(Instance {
                    claim: Some(self.claim.id.clone()),
                    purchase: Some(Purchase {
                        region: region.clone(),
                        kind: offer.kind.clone(),
                        price: offer.per_hour(),
                        traffic: traffic(offer.traffic, wanted.traffic),
                        token: None,
                        machine: None,
                    }),
                    ..Instance::new(new_id(), attempt.clone(), provider, State::Planned, in_guest(port), life)
                });
            }
            let price = |row: &Instance| cost(row, now);
            let spent: MicroUsd = rows.iter().map(price).sum();
            more = planned.iter().map(price).sum();
            if spent.0.saturating_add(more.0) > wanted.max_spend.0 {
                return Err(BuyError::TooDear { spent, more, max: wanted.max_spend });
            }
            Ok(if is_plan { Vec::new() } else { planned.clone() })
        })?;
        crash_point("planned");
        Ok((if is_plan { planned } else { written }, more))
    }

    /// Buys the machine of one row.
    ///
    /// # Errors
    /// See [`RaiseError`]. It has been ended then, or the next `eebt` will end it.
    pub fn buy(
        &self,
        row: &Instance,
        wanted: &Wanted,
        offers: &Offers,
        interrupted: &AtomicBool,
    ) -> Result<(), Failed> {
        self.try_buy(row, wanted, offers, interrupted).map_err(|error| self.give_up(row, error))
    }

    fn try_buy(
        &self,
        row: &Instance,
        wanted: &Wanted,
        offers: &Offers,
        interrupted: &AtomicBool,
    ) -> Result<(), RaiseError> {
        let (cloud, folder, settings) = (self.cloud(row.provider)?, self.folder(&row.id), &wanted.settings);
        let step =
            |step: &Step<'_>| self.record(row, step).and_then(|()| self.check_wanted(row, interrupted));
        let purchase = row.purchase.as_ref();
        let region = purchase.map(|purchase| purchase.region.clone()).unwrap_or_default();
        let traffic = purchase.map(|purchase| purchase.traffic).unwrap_or_default();

        folder.create()?;
        crash_point("folder");
        local::make_keys(&folder, settings, &self.claim)?;
        crash_point("keys-made");
        step(&Step::to(State::Keys))?;
        crash_point("keys");

        let config = BridgeConfig::new(row, &folder, settings);
        let network = settings.network.as_deref();
        let user_data = user_data::render(row, config, &folder.keys(), network, wanted)?;
        let fleet = self.dir.fleet()?;
        let (mut last, offers) = (None, offers.get(&region).map(Vec::as_slice).unwrap_or_default());
        for (n, offer) in offers.iter().enumerate() {
            let order = Order {
                provider: row.provider,
                token: format!("{fleet}-{}-{n}", row.id),
                given: SystemTime::now(),
                region: region.clone(),
                offer: offer.clone(),
                port: row.listen.port(),
                ssh_key: wanted.ssh_key.clone(),
                user_data: user_data.clone(),
                tags: Tags {
                    fleet: fleet.clone(),
                    id: row.id.clone(),
                    attempt: row.attempt.clone(),
                    expires: row.expires,
                    cost: Cost { hour: offer.per_hour(), traffic },
                },
            };
            folder.write_order(&order)?;
            crash_point("order-written");
            // From here on there may be a machine.
            step(&Step::to(State::Config).ordered(&order.token, &offer.kind, offer.per_hour()))?;
            crash_point("ordered");
            let bought = match cloud.create(&order) {
                // It may be there all the same, and then nothing is lost but an answer.
                Err(error) if !error.is_certain() => cloud.find(&order).ok().flatten().ok_or(error),
                answer => answer,
            };
            match bought {
                Ok(machine) => {
                    crash_point("bought");
                    step(&Step::to(State::Launched).machine(&machine.name))?;
                    crash_point("launched");
                    return Ok(());
                }
                Err(error) if error.is_certain() => {
                    self.record(row, &Step::to(State::Keys))?;
                    let is_final = error.trouble != Trouble::Capacity;
                    last = Some(error);
                    if is_final {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.map_or(RaiseError::Overtaken, RaiseError::Cloud))
    }

    pub(super) fn record(&self, row: &Instance, step: &Step<'_>) -> Result<(), RaiseError> {
        let ours = self.ledger.advance(&row.id, &self.claim.id, step, SystemTime::now())?;
        if ours { Ok(()) } else { Err(RaiseError::Overtaken) }
    }

    /// Ends what was begun for a row of ours.
    pub(super) fn give_up(&self, row: &Instance, error: RaiseError) -> Failed {
        let state = match &error {
            RaiseError::StopRequested | RaiseError::Interrupted => State::Ended,
            _ => State::Failed,
        };
        let (id, reason) = (row.id.clone(), error.to_string());
        match self.end_machine(row) {
            Ok(()) => {
                // If this fails, the next run does it again.
                let step = Step::to(state).error(&reason);
                let _ = self.ledger.advance(&id, &self.claim.id, &step, SystemTime::now());
                let _ = self.folder(&id).clear();
                Failed { id, error: Box::new(error), log: Vec::new() }
            }
            // Whoever looks next tries again.
            Err(undo) => {
                let _ = self.ledger.release(&id, &self.claim.id);
                Failed { id, log: vec![reason], error: Box::new(undo) }
            }
        }
    }

    /// Makes sure that a row has no machine. May be called after any step, and again.
    pub(crate) fn end_machine(&self, row: &Instance) -> Result<(), RaiseError> {
        self.end_machines(&[row]).pop().unwrap_or(Ok(()))
    }

    /// The same for several rows, in as few calls as can be; what became of each.
    pub(crate) fn end_machines(&self, rows: &[&Instance]) -> Vec<Result<(), RaiseError>> {
        let mut places: BTreeMap<(Provider, String), Vec<(usize, String)>> = BTreeMap::new();
        let mut results = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            results.push(self.machine_of(row).map(|found| {
                if let Some((region, machine)) = found {
                    places.entry((row.provider, region)).or_default().push((n, machine));
                }
            }));
        }
        for ((provider, region), machines) in places {
            let names: Vec<String> = machines.iter().map(|(_, name)| name.clone()).collect();
            let ended = self.cloud(provider).and_then(|cloud| cloud.terminate(&region, &names));
            for (n, _) in machines {
                results[n] = ended.clone().map_err(RaiseError::from);
            }
        }
        results
    }

    /// The region and the name of the machine that a row may have.
    fn machine_of(&self, row: &Instance) -> Result<Option<(String, String)>, RaiseError> {
        // Steps may have been taken that are not in `row`.
        let Some(purchase) = self.ledger.get(&row.id)?.and_then(|row| row.purchase) else { return Ok(None) };
        let machine = match (purchase.machine, purchase.token) {
            (Some(machine), _) => Some(machine),
            (None, None) => None, // nothing was ever ordered
            (None, Some(_)) => self.ordered(row, &purchase.region)?,
        };
        Ok(machine.map(|machine| (purchase.region, machine)))
    }

    /// What did an order buy whose answer is not known?
    fn ordered(&self, row: &Instance, region: &str) -> Result<Option<String>, RaiseError> {
        let cloud = self.cloud(row.provider)?;
        if let Some(order) = self.folder(&row.id).read_order() {
            return Ok(cloud.find(&order)?.map(|machine| machine.name));
        }
        // Somebody has removed the order: its tags are left.
        let fleet = self.dir.fleet()?;
        let is_its = |machine: &Machine| machine.tags.id == row.id && machine.tags.fleet == fleet;
        let found = cloud.list(region)?.into_iter().find(is_its);
        match found {
            Some(machine) => Ok(Some(machine.name)),
            None if row.created.elapsed().is_ok_and(|age| age > SETTLE) => Ok(None),
            None => {
                Err(RaiseError::NotReady { after: SETTLE, reason: "it may still appear".into(), hint: None })
            }
        }
    }
}

/// What so many bytes cost at this price for a GB. Cells, TLS and acknowledgements add a tenth to what streams carry.
fn traffic(price: MicroUsd, bytes: u64) -> MicroUsd {
    let sum = u128::from(price.0) * u128::from(bytes) * 11 / 10_000_000_000;
    MicroUsd(u64::try_from(sum).unwrap_or(u64::MAX))
}
