//! The sagas of machines in clouds: bought, at work, ended. Whatever is begun here and not finished is finished or
//! unwound by the next `eebt`, by what the ledger and the cloud say together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::cost::{SPENDING_TIME, cost};
use super::user_data::{self, Program};
use super::{
    Cloud, CloudError, Condition, Cost, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble, aws::Aws,
};
use crate::check::{Checked, Checker, Question};
use crate::fleet::{Fleet, FleetError, News};
use crate::folder::FolderError;
use crate::instance::{Instance, Provider, Purchase, State};
use crate::ledger::{LedgerError, Step};
use crate::local::{self, BridgeConfig, Settings};
use crate::plan::PORTS;
use crate::raise::{Failed, RaiseError, new_id};
use crate::{causes, crash_point};

/// How long a new machine may be missing where the cloud lists machines.
const SETTLE: Duration = Duration::from_secs(15 * 60);
/// How long after its expiry a machine that should have ended by itself is ended.
pub(super) const LATE: Duration = Duration::from_secs(5 * 60);
/// How often new machines are asked for their addresses, and then whether they still live.
const POLL: Duration = Duration::from_secs(2);
const SLOW_POLL: Duration = Duration::from_secs(15);
/// How often answers are looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long one that does not serve yet is left alone: twice as long each time, up to this. Each question goes by
/// another relay, and a relay does not try an address again for a minute that did not answer it.
const ASK_AGAIN: Duration = Duration::from_secs(8);
/// Most offers that are tried for one machine.
const MAX_OFFERS: usize = 6;
/// Where the status page is in a guest, which has nothing else there.
const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);

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
    /// Let people log in?
    pub ssh: bool,
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
            Self::Region(_) => Some("`eebt doctor aws` lists them".into()),
            Self::NoOffer { .. } => Some("name other types, another region, or a higher --max-price".into()),
            Self::TooMany { .. } => Some("`eebt down` ends some; a higher --max-count allows more".into()),
            Self::TooDear { .. } => {
                Some("a shorter --lifetime, a lower --count or less --traffic costs less; `eebt cost` shows what was spent".into())
            }
        }
    }
}

/// A machine on its way.
struct Coming {
    row: Instance,
    since: Instant,
    line: Option<String>,
    /// Whether it serves.
    asked: Option<Question>,
    ask_at: Instant,
    pause: Duration,
    /// What is in its way, and what to try.
    said: Option<String>,
    hint: Option<String>,
}

impl Coming {
    fn new(row: Instance) -> Self {
        let now = Instant::now();
        Self {
            row,
            since: now,
            line: None,
            asked: None,
            ask_at: now,
            pause: Duration::from_secs(1),
            said: None,
            hint: None,
        }
    }
}

/// An exit bridge that has come up.
#[derive(Debug)]
pub struct Come {
    /// Its bridge line.
    pub line: String,
    /// It serves, or why that is not known.
    pub serves: Result<(), String>,
}

/// What is going to be bought: for each region its offers, cheapest first.
pub type Offers = BTreeMap<String, Vec<Offer>>;

impl Fleet {
    /// The cloud of this provider, connected to at the first use.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub fn cloud(&self, provider: Provider) -> Result<&dyn Cloud, CloudError> {
        match provider {
            Provider::Local => Err(CloudError {
                cloud: "local",
                action: "connect",
                region: "this machine".into(),
                trouble: Trouble::Refused,
                said: "is no cloud".into(),
                hint: None,
            }),
            Provider::Aws => match self.aws.get_or_init(Aws::connect) {
                Ok(aws) => Ok(aws),
                Err(error) => Err(error.clone()),
            },
        }
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
                let (kinds, region) = (wanted.query.kinds.join(", "), region.clone());
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
        let (cloud, mut more, mut planned) = (self.cloud(wanted.provider)?, MicroUsd::default(), Vec::new());
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
                planned.push(Instance {
                    id: new_id(),
                    attempt: attempt.clone(),
                    provider: wanted.provider,
                    state: State::Planned,
                    address: None,
                    listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
                    status: STATUS,
                    created: now,
                    expires: expires(),
                    ended: None,
                    line: None,
                    pid: None,
                    claim: Some(self.claim.id.clone()),
                    stop_requested: false,
                    stop_by: None,
                    last_error: None,
                    ready: None,
                    burned: None,
                    purchase: Some(Purchase {
                        region: region.clone(),
                        kind: offer.kind.clone(),
                        price: offer.per_hour(),
                        traffic: traffic(cloud.traffic_price(region), wanted.traffic),
                        token: None,
                        machine: None,
                    }),
                });
            }
            let spent: MicroUsd = rows.iter().map(cost).sum();
            more = planned.iter().map(cost).sum();
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
                region: region.clone(),
                offer: offer.clone(),
                port: row.listen.port(),
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
            match cloud.create(&order) {
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

    /// Waits until the machines that come from `bought` serve, and calls `done` with what became of each; one that does
    /// not come up has been ended then. Without a `checker` it is enough that they have addresses.
    pub fn until_serving(
        &self,
        bought: &Receiver<Instance>,
        wanted: &Wanted,
        patience: Duration,
        checker: Option<&Checker>,
        interrupted: &AtomicBool,
        mut done: impl FnMut(&Instance, Result<Come, Failed>),
    ) {
        let (mut coming, mut more): (Vec<Coming>, _) = (Vec::new(), true);
        let (mut machines, mut look_at) = (Vec::new(), Instant::now());
        while more || !coming.is_empty() {
            loop {
                match bought.recv_timeout(if coming.is_empty() { POLL } else { Duration::ZERO }) {
                    Ok(row) => {
                        look_at = look_at.min(Instant::now() + POLL);
                        coming.push(Coming::new(row));
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        more = false;
                        break;
                    }
                }
            }
            let is_look = Instant::now() >= look_at;
            if is_look {
                machines = self.list_coming(&mut coming, wanted.provider);
                let some_lack_address = coming.iter().any(|one| one.line.is_none());
                look_at = Instant::now() + if some_lack_address { POLL } else { SLOW_POLL };
            }
            coming.retain_mut(|one| {
                let machine = machines.iter().find(|machine| machine.id == one.row.id);
                let wanted_still = match is_look || interrupted.load(Ordering::Relaxed) {
                    true => self.check_wanted(&one.row, interrupted),
                    false => Ok(()),
                };
                let further = wanted_still.and_then(|()| self.further(one, machine, wanted, checker));
                let result = match further {
                    Ok(None) if one.since.elapsed() < patience => return true,
                    Ok(None) => Err(RaiseError::NotReady {
                        after: patience,
                        reason: one.said.take().unwrap_or_else(|| "it has no address".into()),
                        hint: one.hint.take().or_else(|| Some("it may need a longer --timeout".into())),
                    }),
                    Ok(Some(come)) => Ok(come),
                    Err(error) => Err(error),
                };
                done(&one.row, result.map_err(|error| self.give_up(&one.row, error)));
                false
            });
            if !coming.is_empty() {
                sleep(TICK);
            }
        }
    }

    /// The machines of all regions where some are on their way.
    fn list_coming(&self, coming: &mut [Coming], provider: Provider) -> Vec<Machine> {
        let regions: BTreeSet<String> =
            coming.iter().filter_map(|one| one.row.region().map(str::to_owned)).collect();
        let mut machines = Vec::new();
        for region in regions {
            match self.cloud(provider).and_then(|cloud| cloud.list(&region)) {
                Ok(some) => machines.extend(some),
                Err(error) => {
                    let here = coming.iter_mut().filter(|one| one.row.region() == Some(&region));
                    for one in here.filter(|one| one.line.is_none()) {
                        (one.said, one.hint) = (Some(error.to_string()), error.hint.clone());
                    }
                }
            }
        }
        machines
    }

    /// Sees how far a machine has come.
    fn further(
        &self,
        one: &mut Coming,
        machine: Option<&Machine>,
        wanted: &Wanted,
        checker: Option<&Checker>,
    ) -> Result<Option<Come>, RaiseError> {
        let address = match machine {
            Some(Machine { condition: Condition::Gone, reason, .. }) => {
                return Err(RaiseError::Lost(reason.clone().unwrap_or_else(|| "no reason is given".into())));
            }
            Some(machine) => machine.address,
            None => None,
        };
        let line = match (&one.line, address) {
            (Some(line), _) => line.clone(),
            (None, None) => return Ok(None),
            (None, Some(ip)) => {
                let address = SocketAddr::new(ip, one.row.listen.port());
                let line = self.addressed(&one.row, address, &wanted.settings)?;
                crash_point("addressed");
                (one.said, one.hint) = (Some("it takes no circuits yet".into()), None);
                one.line.insert(line).clone()
            }
        };
        let Some(checker) = checker else { return self.come(one, line, Err("it was not checked".into())) };
        let checked = match one.asked.take() {
            Some(question) => match checker.answer(&question) {
                Ok(None) => {
                    one.asked = Some(question);
                    return Ok(None);
                }
                answer => answer,
            },
            None if Instant::now() < one.ask_at => return Ok(None),
            None => checker.ask(&line).map(|question| {
                one.asked = Some(question);
                None
            }),
        };
        match checked {
            Ok(None) => Ok(None),
            Ok(Some(checked)) if checked.serves => self.come(one, line, Ok(())),
            // It may serve or not: that our side is cut off is no reason to end it.
            Ok(Some(Checked { no_tor: true, error, .. })) => {
                self.come(one, line, Err(error.unwrap_or_default()))
            }
            Ok(Some(checked)) => {
                one.said = checked.error;
                one.ask_at = Instant::now() + one.pause;
                one.pause = (one.pause * 2).min(ASK_AGAIN);
                Ok(None)
            }
            Err(error) => self.come(one, line, Err(causes(&error))),
        }
    }

    /// It is out of our hands.
    fn come(
        &self,
        one: &Coming,
        line: String,
        serves: Result<(), String>,
    ) -> Result<Option<Come>, RaiseError> {
        let state = if serves.is_ok() { State::Running } else { State::Starting };
        self.record(&one.row, &Step::to(state))?;
        crash_point("ready");
        self.folder(&one.row.id).clear()?;
        Ok(Some(Come { line, serves }))
    }

    /// Now that its address is known, so is its bridge line.
    fn addressed(
        &self,
        row: &Instance,
        address: SocketAddr,
        settings: &Settings,
    ) -> Result<String, RaiseError> {
        let folder = self.folder(&row.id);
        local::write_config(&Instance { address: Some(address), ..row.clone() }, &folder, settings)?;
        let line = local::bridge_line(&folder, settings, &self.claim)?;
        self.record(row, &Step::to(State::Launched).line(&line).address(address))?;
        Ok(line)
    }

    fn record(&self, row: &Instance, step: &Step<'_>) -> Result<(), RaiseError> {
        let ours = self.ledger.advance(&row.id, &self.claim.id, step, SystemTime::now())?;
        if ours { Ok(()) } else { Err(RaiseError::Overtaken) }
    }

    /// Ends what was begun for a row of ours.
    fn give_up(&self, row: &Instance, error: RaiseError) -> Failed {
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
        // Steps may have been taken that are not in `row`.
        let Some(purchase) = self.ledger.get(&row.id)?.and_then(|row| row.purchase) else { return Ok(()) };
        let cloud = self.cloud(row.provider)?;
        let machine = match (purchase.machine, purchase.token) {
            (Some(machine), _) => machine,
            (None, None) => return Ok(()), // nothing was ever ordered
            (None, Some(_)) => match self.ask_again(row, &purchase.region, cloud)? {
                Some(machine) => machine,
                None => return Ok(()),
            },
        };
        Ok(cloud.terminate(&purchase.region, &machine)?)
    }

    /// What did an order buy whose answer is not known? The same order again buys nothing twice, and its answer is
    /// certain at once, where a list of machines may lag behind.
    fn ask_again(
        &self,
        row: &Instance,
        region: &str,
        cloud: &dyn Cloud,
    ) -> Result<Option<String>, RaiseError> {
        if let Some(order) = self.folder(&row.id).read_order() {
            return Ok(certain(cloud.create(&order))?.map(|machine| machine.name));
        }
        // Somebody has removed the order: its tags are left.
        let found = cloud.list(region)?.into_iter().find(|machine| machine.id == row.id);
        match found {
            Some(machine) => Ok(Some(machine.name)),
            None if row.created.elapsed().is_ok_and(|age| age > SETTLE) => Ok(None),
            None => {
                Err(RaiseError::NotReady { after: SETTLE, reason: "it may still appear".into(), hint: None })
            }
        }
    }

    /// Ends what was ordered by a killed `eebt` whose ledger was lost.
    pub(crate) fn end_lost_orders(&self) -> Result<Vec<News>, FleetError> {
        let mut news = Vec::new();
        for id in self.dir.instance_ids()? {
            let folder = self.folder(&id);
            let Some(order) = folder.read_order() else { continue };
            if self.ledger.get(&id)?.is_some() {
                continue;
            }
            let ended = self.cloud(order.provider).and_then(|cloud| {
                let machine = certain(cloud.create(&order))?;
                machine.map_or(Ok(()), |machine| cloud.terminate(&order.region, &machine.name))
            });
            let reason = match ended {
                Ok(()) => {
                    folder.remove()?;
                    "was unknown to the ledger; found by its order, and ended".to_owned()
                }
                Err(error) => format!("is unknown to the ledger, and can't be ended yet: {error}"),
            };
            news.push(News { id, state: State::Failed, reason: Some(reason) });
        }
        Ok(news)
    }

    /// Holds the rows of machines against what their clouds say, in `more` regions as well; returns what is new.
    pub(crate) fn reconcile_clouds(
        &self,
        now: SystemTime,
        more: &[(Provider, String)],
    ) -> Result<Vec<News>, FleetError> {
        let mut rows: BTreeMap<(Provider, String), Vec<Instance>> =
            more.iter().map(|place| (place.clone(), Vec::new())).collect();
        for row in self.ledger.live()? {
            let Some(region) = row.region().map(str::to_owned) else { continue };
            rows.entry((row.provider, region)).or_default().push(row);
        }
        let mut news = Vec::new();
        for ((provider, region), rows) in rows {
            let machines = match self.cloud(provider).and_then(|cloud| cloud.list(&region)) {
                Ok(machines) => machines,
                Err(error) => {
                    let reason = Some(format!("can't be looked at: {error}"));
                    news.extend(rows.into_iter().map(|row| News {
                        id: row.id,
                        state: row.state,
                        reason: reason.clone(),
                    }));
                    continue;
                }
            };
            for row in &rows {
                let machine = machines.iter().find(|machine| machine.id == row.id);
                news.extend(self.act_on_machine(row, machine, now)?);
            }
            news.extend(self.strays(provider, &region, &machines, now)?);
        }
        Ok(news)
    }

    fn act_on_machine(
        &self,
        row: &Instance,
        machine: Option<&Machine>,
        now: SystemTime,
    ) -> Result<Option<News>, FleetError> {
        let is_claimed = self.is_claimed(row)?;
        let verdict = verdict(row, machine, is_claimed, now);
        if verdict == Verdict::Leave {
            if matches!(row.state, State::Starting | State::Running) && !is_claimed {
                self.folder(&row.id).clear()?; // where its `eebt up` was killed just before
            }
            return Ok(None);
        }
        if !self.ledger.claim(row, &self.claim.id)? {
            return Ok(None);
        }
        let said = machine.and_then(|machine| machine.reason.clone());
        let (state, reason) = match verdict {
            Verdict::Leave => return Ok(None),
            Verdict::Unwind => {
                (State::Failed, Some(format!("its `eebt up` was killed at step {}", row.state)))
            }
            Verdict::Finish(State::Died) => {
                let said = said.unwrap_or_else(|| "the cloud does not say why".into());
                (State::Died, Some(format!("its machine was gone before its expiry: {said}")))
            }
            Verdict::Finish(state) => (state, None),
            Verdict::End(State::Expired) => {
                (State::Expired, Some("did not end by itself, and was ended".to_owned()))
            }
            Verdict::End(state) => (state, None),
        };
        if !matches!(verdict, Verdict::Finish(_))
            && let Err(error) = self.end_machine(row)
        {
            self.ledger.release(&row.id, &self.claim.id)?;
            let reason = Some(format!("can't be ended yet: {error}"));
            return Ok(Some(News { id: row.id.clone(), state: row.state, reason }));
        }
        let step = Step::to(state);
        let step = match &reason {
            Some(reason) => step.error(reason),
            None => step,
        };
        self.ledger.advance(&row.id, &self.claim.id, &step, now)?;
        self.folder(&row.id).clear()?;
        Ok(Some(News { id: row.id.clone(), state, reason }))
    }

    /// Machines of this fleet that the ledger does not count among the living: those that it thinks over are ended,
    /// those that it never heard of are taken in.
    fn strays(
        &self,
        provider: Provider,
        region: &str,
        machines: &[Machine],
        now: SystemTime,
    ) -> Result<Vec<News>, FleetError> {
        let fleet = self.dir.fleet()?;
        let mut news = Vec::new();
        for machine in machines.iter().filter(|m| m.fleet == fleet && m.condition == Condition::Alive) {
            match self.ledger.get(&machine.id)? {
                Some(row) if row.state.is_final() => {
                    // A list that lags behind, or a machine that we lost sight of: the same call serves both.
                    if let Err(error) =
                        self.cloud(provider).and_then(|cloud| cloud.terminate(region, &machine.name))
                    {
                        let reason = Some(format!("still has a machine: {error}"));
                        news.push(News { id: row.id, state: row.state, reason });
                    }
                }
                Some(_) => {}
                None => {
                    let row = adopted(provider, region, machine, now);
                    self.ledger.reserve(None, |_| Ok::<_, LedgerError>(vec![row]))?;
                    let reason = Some("was unknown to the ledger; found by its tags".into());
                    news.push(News { id: machine.id.clone(), state: State::Running, reason });
                }
            }
        }
        Ok(news)
    }

    /// Looks through all regions of a cloud for machines of this fleet, and removes what else it left there.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn sweep(&self, provider: Provider, now: SystemTime) -> Result<Vec<News>, FleetError> {
        let cloud = self.cloud(provider)?;
        let regions = cloud.regions()?;
        let places: Vec<_> = regions.iter().map(|region| (provider, region.clone())).collect();
        let news = self.reconcile_clouds(now, &places)?;
        for region in &regions {
            self.tidy_region(cloud, region)?;
        }
        Ok(news)
    }

    fn tidy_region(&self, cloud: &dyn Cloud, region: &str) -> Result<(), FleetError> {
        let attempts = || Ok(self.ledger.live()?.into_iter().map(|row| row.attempt).collect());
        cloud.tidy(region, &self.dir.fleet()?, &attempts)
    }
}

/// What an order that was given again has bought. That it is not permitted now says nothing of the first time.
fn certain(answer: Result<Machine, CloudError>) -> Result<Option<Machine>, CloudError> {
    match answer {
        Ok(machine) => Ok(Some(machine)),
        Err(error) => match error.trouble {
            Trouble::Gone | Trouble::Capacity | Trouble::Quota | Trouble::Refused => Ok(None),
            Trouble::Permission | Trouble::Credentials | Trouble::Unknown => Err(error),
        },
    }
}

/// What so many bytes cost at this price for a GB. Cells, TLS and acknowledgements add a tenth to what streams carry.
fn traffic(price: MicroUsd, bytes: u64) -> MicroUsd {
    let sum = u128::from(price.0) * u128::from(bytes) * 11 / 10_000_000_000;
    MicroUsd(u64::try_from(sum).unwrap_or(u64::MAX))
}

/// What a row and its machine say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as the ledger says, or someone is at work on it.
    Leave,
    /// Its `eebt up` is gone: end what it began.
    Unwind,
    /// Its machine is gone: record this state.
    Finish(State),
    /// It should be gone: end it and record this state.
    End(State),
}

fn verdict(row: &Instance, machine: Option<&Machine>, is_claimed: bool, now: SystemTime) -> Verdict {
    let is_past = |at: SystemTime| now >= at;
    let is_gone = match machine {
        Some(machine) => machine.condition == Condition::Gone,
        None => is_past(row.created + SETTLE),
    };
    match row.state {
        state if state.is_final() || is_claimed => Verdict::Leave,
        state if state.is_creating() => Verdict::Unwind,
        State::Stopping if is_gone => Verdict::Finish(State::Ended),
        State::Stopping => Verdict::End(State::Ended),
        _ if is_gone && is_past(row.expires) => Verdict::Finish(State::Expired),
        _ if is_gone => Verdict::Finish(State::Died),
        _ if is_past(row.expires + LATE) => Verdict::End(State::Expired),
        _ => Verdict::Leave,
    }
}

/// The row of a machine that is ours by its tags, and in no ledger. Its bridge line is not to be had.
fn adopted(provider: Provider, region: &str, machine: &Machine, now: SystemTime) -> Instance {
    Instance {
        id: machine.id.clone(),
        attempt: machine.attempt.clone(),
        provider,
        state: State::Running,
        address: None,
        listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        status: STATUS,
        created: machine.bought.unwrap_or(now),
        // Without the tag nobody knows, so: now.
        expires: machine.expires.unwrap_or(now),
        ended: None,
        line: None,
        pid: None,
        claim: None,
        stop_requested: false,
        stop_by: None,
        last_error: None,
        ready: None,
        burned: None,
        purchase: Some(Purchase {
            region: region.to_owned(),
            kind: machine.kind.clone(),
            price: machine.cost.hour,
            traffic: machine.cost.traffic,
            token: None,
            machine: Some(machine.name.clone()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::{at, row};

    fn machine(condition: Condition) -> Machine {
        Machine {
            name: "i-1".into(),
            condition,
            address: None,
            fleet: "f".into(),
            id: "x".into(),
            attempt: "a".into(),
            expires: None,
            cost: Cost::default(),
            bought: None,
            kind: "t3.nano".into(),
            reason: None,
        }
    }

    #[test]
    fn a_row_and_its_machine_decide_together() {
        let (alive, gone) = (machine(Condition::Alive), machine(Condition::Gone));
        let settled = SETTLE.as_secs();
        let late = 1000 + LATE.as_secs();
        for (state, machine, claimed, now, expected) in [
            (State::Config, Some(&alive), true, 1, Verdict::Leave),
            (State::Config, None, false, 1, Verdict::Unwind),
            (State::Launched, Some(&alive), false, 1, Verdict::Unwind),
            (State::Running, Some(&alive), false, 999, Verdict::Leave),
            // A list that does not know it yet.
            (State::Running, None, false, settled - 1, Verdict::Leave),
            (State::Running, None, false, settled, Verdict::Finish(State::Died)),
            (State::Running, Some(&gone), false, 1, Verdict::Finish(State::Died)),
            (State::Running, Some(&gone), false, 1000, Verdict::Finish(State::Expired)),
            // It has a timer of its own.
            (State::Running, Some(&alive), false, late - 1, Verdict::Leave),
            (State::Running, Some(&alive), false, late, Verdict::End(State::Expired)),
            (State::Stopping, Some(&alive), false, 1, Verdict::End(State::Ended)),
            (State::Stopping, Some(&gone), false, 1, Verdict::Finish(State::Ended)),
            (State::Ended, Some(&alive), false, 1, Verdict::Leave),
        ] {
            // Expires at 1000.
            let row = row("x", state);
            assert_eq!(verdict(&row, machine, claimed, at(now)), expected, "{state} at {now}");
        }
    }
}
