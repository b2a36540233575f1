//! `enumeration`: how many exit bridges a censor learns of who is a client of the directory as others are.
//!
//! The selection is the directory's own: its ring, its partitions, its bounds on what a ticket may ask.
//! Exit bridges, clients, the censor and time are made up, one minute after the other. Each run is made
//! once with the ring and once with a choice by chance at each ask, which only exists here. What the
//! figures mean, and what they don't, is in `docs/enumeration.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Parser;
use eebt_proto::directory::{ReachName, Speed, Wishes};
use eebt_proto::limits::MAX_HANDED_OUT;
use eebt_proto::{
    BridgeLine, CircuitReach, Country, OnionReach, PortSet, Reach, Ticket, TicketId, TicketTerms,
};
use hebtor_directory::Config;
use hebtor_directory::api::partition;
use hebtor_directory::config::HandOutConfig;
use hebtor_directory::door::{ASKS, MAX_WISHES};
use hebtor_directory::ring::{Identity, Member, Ring};
use hebtor_directory::store::Partition;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// Where exit bridges are: as many in each.
const COUNTRIES: [&str; 10] = ["DE", "FI", "FR", "GB", "NL", "PL", "RO", "SE", "US", "CA"];

/// Wishes that can be told apart: a country and one of two reaches each.
const MOST_WISHES: usize = 2 * COUNTRIES.len();

/// When the share of what is known is noted, in minutes; the mean of the minutes before.
const MARKS: [u32; 3] = [60, 6 * 60, 24 * 60];

/// How many minutes before.
const WINDOW: u32 = 10;

/// Simulates a censor who asks the directory for exit bridges as its clients do.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Exit bridges that are alive at any time.
    #[arg(long, default_value_t = 1000)]
    exit_bridges: usize,
    /// Honest clients, each with one ticket.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Tickets of the censor, in percent of the honest clients.
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 1.0, 10.0, 100.0])]
    percent: Vec<f64>,
    /// Mean life of an exit bridge; lives are exponential.
    #[arg(long, value_delimiter = ',', default_values = ["15m", "1h", "6h"])]
    life: Vec<humantime::Duration>,
    /// Different wishes that the censor asks with; by default as many as the directory lets a ticket have.
    #[arg(long, default_value_t = MAX_WISHES)]
    wishes: usize,
    /// The same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Who is given which exit bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Choice {
    /// As the directory does it.
    Ring,
    /// Any three, at each ask.
    Chance,
}

/// One simulated day.
#[derive(Clone, Copy, Debug)]
struct Plan {
    exit_bridges: usize,
    clients: usize,
    tickets: usize,
    wishes: usize,
    /// Mean, in minutes.
    life: f64,
    choice: Choice,
    seed: u64,
}

/// What came out of it: shares at the [`MARKS`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Shares {
    /// Exit bridges, of those that are handed out and live, that the censor knows.
    harvested: [f64; MARKS.len()],
    /// Honest clients that hold one that lives and that the censor does not know.
    served: [f64; MARKS.len()],
}

/// Both choices, all else equal.
#[derive(Debug, Serialize)]
struct Row {
    life_minutes: f64,
    tickets: usize,
    /// Of the censor, of the honest clients.
    percent: f64,
    /// What the censor's tickets cost.
    cost: Cost,
    ring: Shares,
    chance: Shares,
}

/// What tickets cost.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// On one core.
    seconds: f64,
    /// For each core.
    mib: f64,
}

#[derive(Debug, Serialize)]
struct Results {
    seed: u64,
    exit_bridges: usize,
    clients: usize,
    wishes: usize,
    /// One ticket, on average.
    ticket: Cost,
    marks_minutes: [u32; MARKS.len()],
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("enumeration: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    ensure!((1..=MOST_WISHES).contains(&args.wishes), "--wishes: must be from 1 to {MOST_WISHES}");
    ensure!(args.exit_bridges > 0 && args.clients > 0, "there must be exit bridges and clients");
    let ticket = cost_of_a_ticket(&Config::default().terms([0; 32]))?;
    eprintln!("a ticket costs {:.1} s of one core, and {:.0} MiB", ticket.seconds, ticket.mib);
    let mut rows = Vec::new();
    for life in &args.life {
        let life = life.as_secs_f64() / 60.0;
        ensure!(life >= 1.0, "--life: must be at least 1m");
        for &percent in &args.percent {
            let tickets = share(args.clients, percent / 100.0);
            let plan = |choice| Plan {
                exit_bridges: args.exit_bridges,
                clients: args.clients,
                tickets,
                wishes: args.wishes,
                life,
                choice,
                seed: args.seed,
            };
            eprintln!("exit bridges live {life} min, {tickets} tickets");
            #[allow(clippy::cast_precision_loss)] // thousands
            let cost = Cost { seconds: ticket.seconds * tickets as f64, ..ticket };
            let (ring, chance) = (day(&plan(Choice::Ring)), day(&plan(Choice::Chance)));
            rows.push(Row { life_minutes: life, tickets, percent, cost, ring, chance });
        }
    }
    let results = Results {
        seed: args.seed,
        exit_bridges: args.exit_bridges,
        clients: args.clients,
        wishes: args.wishes,
        ticket,
        marks_minutes: MARKS,
        rows,
    };
    print(&if args.json { serde_json::to_string_pretty(&results)? } else { table(&results) });
    Ok(())
}

/// The one place that writes to stdout: data.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    println!("{text}");
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn share(n: usize, share: f64) -> usize {
    (n as f64 * share).round().max(0.0) as usize
}

/// Makes one ticket. How many proofs it takes is chance, so the time of one proof is what is measured.
fn cost_of_a_ticket(terms: &TicketTerms) -> anyhow::Result<Cost> {
    let mut proofs = 0u32;
    let start = Instant::now();
    let go_on = || {
        proofs += 1;
        true
    };
    Ticket::make(terms, [7; 32], go_on)?.context("no ticket came out")?;
    let of_a_proof = start.elapsed().as_secs_f64() / f64::from(proofs);
    Ok(Cost {
        seconds: of_a_proof * f64::from(1u32 << terms.bits),
        mib: f64::from(terms.memory_kib) / 1024.0,
    })
}

/// An exit bridge, as the simulation knows it.
struct ExitBridge {
    identity: Identity,
    /// Minute of its end.
    ends: f64,
    /// The censor knows it.
    harvested: bool,
}

/// All exit bridges that ever were, and those that are handed out.
struct Fleet {
    life: f64,
    secret: [u8; 32],
    shares: HandOutConfig,
    ring: Ring,
    all: Vec<ExitBridge>,
    /// Those that live.
    live: Vec<usize>,
    /// Those of them that are handed out.
    open: Vec<usize>,
}

/// The time, in minutes, as the directory has it.
fn at(minute: f64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + Duration::from_secs_f64(minute * 60.0)
}

/// A life, exponential with this mean; `draw` is from 0 to 1.
fn life(mean: f64, draw: f64) -> f64 {
    -mean * (1.0 - draw).ln()
}

impl Fleet {
    fn new(n: usize, life: f64, rng: &mut Xoshiro256PlusPlus) -> Self {
        let secret: [u8; 32] = rng.random();
        let mut fleet = Self {
            life,
            secret,
            shares: HandOutConfig::default(),
            ring: Ring::new(secret),
            all: Vec::new(),
            live: Vec::new(),
            open: Vec::new(),
        };
        // What is left of exponential lives is exponential again: there is no beginning.
        (0..n).for_each(|_| fleet.start_one(0.0, rng));
        fleet
    }

    fn start_one(&mut self, now: f64, rng: &mut Xoshiro256PlusPlus) {
        let mut identity: Identity = rng.random();
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        identity[..4].copy_from_slice(&number.to_be_bytes());
        let ends = now + life(self.life, rng.random());
        let open = partition(&self.secret, &identity, &self.shares) == Partition::Open;
        let member = member(&identity, ends, rng);
        self.live.push(self.all.len());
        if open {
            self.open.push(self.all.len());
            self.ring.insert(member);
        }
        self.all.push(ExitBridge { identity, ends, harvested: false });
    }

    /// Replaces those that have ended.
    fn turn_over(&mut self, now: f64, rng: &mut Xoshiro256PlusPlus) {
        let before = self.live.len();
        let (all, ring) = (&self.all, &mut self.ring);
        self.live.retain(|&n| all[n].ends > now);
        self.open.retain(|&n| {
            if all[n].ends <= now {
                ring.remove(&all[n].identity);
            }
            all[n].ends > now
        });
        (self.live.len()..before).for_each(|_| self.start_one(now, rng));
    }

    /// What a ticket is given.
    fn hand_out(
        &self,
        choice: Choice,
        ticket: &TicketId,
        wishes: &Wishes,
        now: f64,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Vec<usize> {
        match choice {
            Choice::Ring => {
                let chosen = self.ring.choose(ticket, wishes, MAX_HANDED_OUT, at(now));
                chosen.into_iter().map(|member| number_of(member.line.reach.identity())).collect()
            }
            Choice::Chance => {
                let mut chosen = Vec::with_capacity(MAX_HANDED_OUT);
                while chosen.len() < MAX_HANDED_OUT.min(self.open.len()) {
                    let one = self.open[rng.random_range(0..self.open.len())];
                    if !chosen.contains(&one) {
                        chosen.push(one);
                    }
                }
                chosen
            }
        }
    }

    /// Share of those handed out that the censor knows.
    #[allow(clippy::cast_precision_loss)] // thousands
    fn harvested(&self) -> f64 {
        let known = self.open.iter().filter(|&&n| self.all[n].harvested).count();
        known as f64 / self.open.len().max(1) as f64
    }
}

/// An exit bridge by its number.
fn number_of(identity: &Identity) -> usize {
    identity.iter().take(4).fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// An exit bridge as the directory hands it out. It said beforehand when it will end.
fn member(identity: &Identity, ends: f64, rng: &mut Xoshiro256PlusPlus) -> Member {
    let reach = match rng.random() {
        true => Reach::Onion(OnionReach { service: *identity }),
        false => Reach::Circuit(CircuitReach {
            addresses: Vec::new(),
            ed25519: *identity,
            rsa: [0; 20],
            ntor: [0; 32],
            protocols: String::new(),
        }),
    };
    let speeds = [Speed::Slow, Speed::Medium, Speed::Fast];
    Member {
        line: BridgeLine { reach, ports: PortSet::web(), expires: Some(at(ends)) },
        country: COUNTRIES[rng.random_range(0..COUNTRIES.len())].parse().ok(),
        speed: speeds[rng.random_range(0..speeds.len())],
        live_until: at(ends),
    }
}

/// An honest client.
struct Client {
    ticket: TicketId,
    held: Vec<usize>,
    /// Minute at which it asks again.
    lease_until: f64,
}

/// A ticket of the censor, with the wishes that it asks with in turn.
struct CensorTicket {
    ticket: TicketId,
    wishes: Vec<Wishes>,
    asked: usize,
}

/// Wishes that no exit bridge meets two of: each shows others.
fn wishes(n: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<Wishes> {
    let mut all: Vec<Wishes> = Vec::with_capacity(n);
    while all.len() < n {
        let country: Option<Country> = COUNTRIES[rng.random_range(0..COUNTRIES.len())].parse().ok();
        let reach = Some(if rng.random() { ReachName::Onion } else { ReachName::Circuit });
        let one = Wishes { port: None, country, reach };
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// How often a ticket may ask in a minute: the first time, it may have saved up.
fn asks_in(minute: u32) -> u32 {
    let each = u32::try_from(60 / ASKS.every.as_secs().max(1)).unwrap_or(1);
    if minute == 0 { ASKS.burst } else { each }
}

/// Simulates the day.
fn day(plan: &Plan) -> Shares {
    // The fleet's chance is its own, so that it lives the same life whatever the censor does.
    let mut fleet_rng = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(plan.seed.wrapping_add(1));
    let mut fleet = Fleet::new(plan.exit_bridges, plan.life, &mut fleet_rng);
    let lease = HandOutConfig::default().lease.as_secs_f64() / 60.0;
    let mut clients: Vec<Client> = (0..plan.clients)
        .map(|_| Client { ticket: TicketId(rng.random()), held: Vec::new(), lease_until: 0.0 })
        .collect();
    let mut censor: Vec<CensorTicket> = (0..plan.tickets)
        .map(|_| CensorTicket {
            ticket: TicketId(rng.random()),
            wishes: match plan.choice {
                Choice::Ring if plan.wishes > 1 => wishes(plan.wishes, &mut rng),
                _ => vec![Wishes::default()],
            },
            asked: 0,
        })
        .collect();
    let mut shares = Shares::default();
    let end = MARKS.iter().copied().max().unwrap_or_default();
    for minute in 0..end {
        let now = f64::from(minute);
        fleet.turn_over(now, &mut fleet_rng);
        for ticket in &mut censor {
            for _ in 0..asks_in(minute) {
                let wishes = &ticket.wishes[ticket.asked % ticket.wishes.len()];
                ticket.asked += 1;
                for n in fleet.hand_out(plan.choice, &ticket.ticket, wishes, now, &mut rng) {
                    fleet.all[n].harvested = true;
                }
            }
        }
        let mut served = 0u32;
        for client in &mut clients {
            let useful =
                |held: &[usize]| held.iter().any(|&n| fleet.all[n].ends > now && !fleet.all[n].harvested);
            let lost_one = client.held.iter().any(|&n| fleet.all[n].ends <= now);
            if now >= client.lease_until || lost_one || !useful(&client.held) {
                client.held = fleet.hand_out(plan.choice, &client.ticket, &Wishes::default(), now, &mut rng);
                // They came at different times before this day began.
                client.lease_until = now + if minute == 0 { lease * rng.random::<f64>() } else { lease };
            }
            served += u32::from(useful(&client.held));
        }
        #[allow(clippy::cast_precision_loss)] // thousands
        let served = f64::from(served) / plan.clients.max(1) as f64;
        for (i, mark) in MARKS.into_iter().enumerate() {
            if (mark - WINDOW..mark).contains(&minute) {
                shares.harvested[i] += fleet.harvested() / f64::from(WINDOW);
                shares.served[i] += served / f64::from(WINDOW);
            }
        }
    }
    shares
}

/// All of it for people, in Markdown.
fn table(results: &Results) -> String {
    let Results { seed, exit_bridges, clients, wishes, ticket, .. } = results;
    let mut text = format!(
        "{exit_bridges} exit bridges, {clients} honest clients, {wishes} wishes for each ticket of the censor, seed {seed}. \
         A ticket costs {:.1} s of one core and {:.0} MiB.\n\n\
         | life | censor's tickets | cost on one core | known to the censor, ring | by chance | clients served, ring | by chance |\n\
         |---|---|---|---|---|---|---|\n",
        ticket.seconds, ticket.mib
    );
    for row in &results.rows {
        let life = humantime::format_duration(Duration::from_secs_f64(row.life_minutes * 60.0));
        text.push_str(&format!(
            "| {life} | {} ({} %) | {} | {} | {} | {} | {} |\n",
            row.tickets,
            row.percent,
            hours(row.cost.seconds),
            percents(&row.ring.harvested),
            percents(&row.chance.harvested),
            percents(&row.ring.served),
            percents(&row.chance.served),
        ));
    }
    text
}

fn percents(shares: &[f64]) -> String {
    let shares: Vec<String> = shares.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
    format!("{} %", shares.join(" / "))
}

fn hours(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        120.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(choice: Choice, tickets: usize, life: f64) -> Plan {
        Plan { exit_bridges: 200, clients: 200, tickets, wishes: MAX_WISHES, life, choice, seed: 5 }
    }

    #[test]
    fn without_a_censor_all_are_served() {
        for choice in [Choice::Ring, Choice::Chance] {
            let shares = day(&plan(choice, 0, 60.0));
            assert_eq!(shares.harvested, [0.0; 3]);
            assert!(shares.served.iter().all(|share| *share > 0.999), "{shares:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_day() {
        let plan = plan(Choice::Ring, 3, 30.0);
        assert_eq!(day(&plan), day(&plan));
        assert_ne!(day(&plan), day(&Plan { seed: 6, ..plan }));
    }

    #[test]
    fn a_single_ticket_learns_of_few_by_the_ring_and_of_all_by_chance() {
        let long = 100_000.0;
        let (ring, chance) = (day(&plan(Choice::Ring, 1, long)), day(&plan(Choice::Chance, 1, long)));
        let most = 1.1 * (MAX_WISHES * MAX_HANDED_OUT) as f64 / (200.0 * 0.7);
        assert!(ring.harvested[2] > 0.0 && ring.harvested[2] <= most, "{ring:?}");
        assert!(chance.harvested[2] > 0.95 && chance.served[2] < 0.2, "{chance:?}");
        assert!(ring.served[2] > 0.95, "{ring:?}");
    }

    #[test]
    fn fewer_wishes_show_less() {
        let one = day(&Plan { wishes: 1, ..plan(Choice::Ring, 5, 360.0) });
        let four = day(&Plan { wishes: 4, ..plan(Choice::Ring, 5, 360.0) });
        assert!(one.harvested[2] < four.harvested[2], "{one:?} {four:?}");
    }

    #[test]
    fn the_fleet_keeps_its_size_and_its_shares() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut fleet = Fleet::new(1000, 15.0, &mut rng);
        for minute in 1..60 {
            fleet.turn_over(f64::from(minute), &mut rng);
            assert_eq!(fleet.live.len(), 1000);
            assert_eq!(fleet.open.len(), fleet.ring.len());
            assert!((750..850).contains(&fleet.open.len()), "the others are in reserve, or private");
        }
        assert!(fleet.all.len() > 4000, "they were replaced: {}", fleet.all.len());
        assert!(fleet.open.iter().all(|&n| number_of(&fleet.all[n].identity) == n));
    }

    #[test]
    fn lives_have_their_mean() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mean = (0..100_000).map(|_| life(60.0, rng.random())).sum::<f64>() / 100_000.0;
        assert!((59.0..61.0).contains(&mean), "{mean}");
        assert!(life(60.0, 0.0) == 0.0 && life(60.0, 0.999_999).is_finite());
    }

    #[test]
    fn a_ticket_asks_as_often_as_it_may() {
        assert_eq!((asks_in(0), asks_in(1), asks_in(100)), (8, 1, 1));
    }

    #[test]
    fn the_table_has_a_row_for_each_run() {
        let cost = Cost { seconds: 4.0, mib: 8.0 };
        let row = |tickets| Row {
            life_minutes: 15.0,
            tickets,
            percent: 0.1,
            cost: Cost { seconds: 40_000.0, ..cost },
            ring: Shares { harvested: [0.5, 1.0, 0.0], served: [1.0; 3] },
            chance: Shares::default(),
        };
        let results = Results {
            seed: 1,
            exit_bridges: 10,
            clients: 10,
            wishes: 4,
            ticket: cost,
            marks_minutes: MARKS,
            rows: vec![row(1), row(2)],
        };
        let table = table(&results);
        assert!(
            table.contains("| 15m | 1 (0.1 %) | 11.1 h | 50 / 100 / 0 % | 0 / 0 / 0 % | 100 / 100 / 100 % |"),
            "{table}"
        );
        assert_eq!(table.lines().count(), 6);
    }
}
