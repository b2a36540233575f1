//! What every store does, whatever database is below: each behaviour is a test on each of them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eebt_proto::directory::{Speed, Standing, Wishes};
use eebt_proto::limits::MAX_VALIDITY;
use eebt_proto::{BridgeDescriptor, BridgeLine, OnionReach, PortSet, Reach, TicketId};
use futures::future::join_all;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::{Counts, Cursor, Noted, Partition, Pool, Put, Record, Store, Test, Withdrawn};
use crate::config::StoreUrl;
use crate::directory::open_store;
use crate::index::Index;
use crate::ring::Identity;

/// No behaviour takes longer, on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A database with nothing in it, which can be opened more than once, as replicas do.
struct Database {
    url: String,
    _dir: Option<TempDir>,
}

impl Database {
    fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { url: format!("sqlite:{}", dir.path().join("directory.db").display()), _dir: Some(dir) }
    }

    /// One of the server that the whole suite shares. It ends with this process.
    fn postgres() -> Self {
        static SERVER: OnceLock<testnet::Postgres> = OnceLock::new();
        let server = SERVER.get_or_init(|| testnet::Postgres::start().unwrap_or_else(|e| panic!("{e}")));
        Self { url: server.database().unwrap_or_else(|e| panic!("{e}")), _dir: None }
    }

    async fn open(&self) -> Arc<dyn Store> {
        open(&self.url).await
    }
}

async fn open(url: &str) -> Arc<dyn Store> {
    open_store(&StoreUrl::from(url.to_owned())).await.unwrap()
}

async fn check(database: Database, behaviour: impl AsyncFnOnce(Database)) {
    tokio::time::timeout(PATIENCE, behaviour(database)).await.expect("it takes too long");
}

macro_rules! behaviours {
    ($($behaviour:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $behaviour() {
                super::check(super::Database::sqlite(), super::$behaviour).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $behaviour() {
                super::check(super::Database::postgres(), super::$behaviour).await;
            })*
        }
    };
}

behaviours![
    a_new_exit_bridge_waits_and_is_due_at_once,
    a_renewal_keeps_what_tests_found_and_their_schedule,
    a_replay_is_refused,
    a_withdrawal_ends_what_was_signed_before,
    a_renewal_after_a_withdrawal_waits_and_is_tested_again,
    of_many_puts_at_once_the_latest_stays,
    whoever_is_due_is_claimed_once,
    those_due_longest_are_claimed_first_and_no_more_than_asked,
    the_withdrawn_and_the_expired_are_not_claimed,
    the_withdrawn_and_the_expired_are_due_for_no_test_until_they_are_renewed,
    a_new_one_is_said_to_be_new_once,
    claimers_at_once_never_get_the_same,
    a_line_that_changed_is_as_a_new_one,
    a_line_that_changes_all_the_time_is_tested_once_a_minute,
    those_who_serve_are_tested_before_new_ones,
    a_line_that_changed_during_a_test_is_tested_again,
    only_an_old_test_is_hurried,
    a_result_is_kept_in_all_its_fields,
    whatever_is_kept_is_found,
    a_result_for_the_withdrawn_or_unknown_changes_nothing,
    an_egress_address_has_one_holder_while_it_is_live,
    an_egress_address_is_free_when_its_holder_is_not_live_any_more,
    of_results_at_once_with_one_egress_address_one_is_kept,
    a_test_that_fails_gives_up_the_egress_address,
    changes_come_in_order_and_in_pages,
    what_could_be_replayed_is_not_forgotten,
    the_valid_and_not_withdrawn_are_counted,
    whatever_is_kept_is_counted,
    those_who_serve_and_wait_for_their_test_are_counted,
    the_secret_is_made_once,
    many_can_open_it_at_once,
    a_pool_is_filled_from_the_private_and_live,
    a_pool_that_shrinks_keeps_those_it_has,
    no_exit_bridge_is_in_two_pools,
    a_pool_that_ended_leaves_its_exit_bridges_to_others,
    a_pool_that_is_filled_while_it_ends_holds_nobody,
    pools_are_listed_by_name,
    replicas_give_a_ticket_the_same_answer,
];

/// So many seconds after some day in 2033.
fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(2_000_000_000 + seconds)
}

const HOUR: u64 = 3600;

fn id(n: u8) -> Identity {
    [n; 32]
}

/// The descriptor of exit bridge `n`, valid for an hour.
fn descriptor(n: u8, published: SystemTime) -> BridgeDescriptor {
    BridgeDescriptor {
        line: BridgeLine {
            reach: Reach::Onion(OnionReach { service: id(n) }),
            ports: PortSet::web(),
            expires: None,
        },
        published,
        expires: published + Duration::from_secs(HOUR),
        country: Some("SE".parse().unwrap()),
        capacity: 100,
        software: "test 1.0".into(),
    }
}

/// The same with another line.
fn changed(n: u8, published: SystemTime) -> BridgeDescriptor {
    let mut changed = descriptor(n, published);
    changed.line.ports = "22".parse().unwrap();
    changed
}

/// What a test at `now` found: it works, with an egress address of its own, for ten minutes.
fn serving(n: u8, now: SystemTime) -> Test {
    Test {
        standing: Standing::Serving,
        live_until: now + Duration::from_secs(600),
        egress: Some([203, 0, 113, n].into()),
        country: Some("NO".parse().unwrap()),
        latency: Some(Duration::from_millis(123)),
        speed: Speed::Fast,
        failures: 0,
        next: now + Duration::from_secs(300),
    }
}

fn dead(now: SystemTime) -> Test {
    let next = now + Duration::from_secs(20);
    let test = Test {
        standing: Standing::Unreachable,
        live_until: UNIX_EPOCH,
        failures: 2,
        next,
        ..serving(0, now)
    };
    Test { egress: None, ..test }
}

async fn put(store: &Arc<dyn Store>, n: u8, now: SystemTime) -> Put {
    store.put(&descriptor(n, now), Partition::Open, now).await.unwrap()
}

fn kept(standing: Standing, new: bool) -> Put {
    Put::Kept { standing, new }
}

/// Has exit bridge `n` registered and tested at `now`.
async fn live(store: &Arc<dyn Store>, n: u8, partition: Partition, now: SystemTime) {
    store.put(&descriptor(n, now), partition, now).await.unwrap();
    claim(store, 1000, now).await;
    assert_eq!(store.note(&id(n), &serving(n, now), now).await.unwrap(), Noted::Kept);
}

/// Claims for a minute. Whom?
async fn claim(store: &Arc<dyn Store>, limit: u32, now: SystemTime) -> Vec<u8> {
    let claimed = store.claim_due(limit, now, now + Duration::from_secs(60)).await.unwrap();
    let mut claimed: Vec<u8> = claimed.iter().map(|record| record.identity()[0]).collect();
    claimed.sort_unstable();
    claimed
}

/// All records, in the order of their changes.
async fn all(store: &Arc<dyn Store>) -> Vec<(Cursor, Record)> {
    store.changes(Cursor::before(UNIX_EPOCH), 1000).await.unwrap()
}

async fn record(store: &Arc<dyn Store>, n: u8) -> Record {
    let of_n = |(_, record): (Cursor, Record)| (*record.identity() == id(n)).then_some(record);
    all(store).await.into_iter().find_map(of_n).unwrap()
}

async fn a_new_exit_bridge_waits_and_is_due_at_once(database: Database) {
    let store = database.open().await;
    let mut new = descriptor(1, at(0) + Duration::from_millis(7));
    new.line.expires = Some(at(5 * HOUR));
    let now = at(10) + Duration::from_millis(3);
    assert_eq!(store.put(&new, Partition::Reserve, now).await.unwrap(), kept(Standing::Waiting, true));
    let expected = Record {
        line: new.line.clone(),
        published: new.published,
        expires: new.expires,
        claimed_country: new.country,
        partition: Partition::Reserve,
        withdrawn: false,
        test: Test {
            standing: Standing::Waiting,
            live_until: UNIX_EPOCH,
            egress: None,
            country: None,
            latency: None,
            speed: Speed::Medium,
            failures: 0,
            next: now,
        },
    };
    assert_eq!(all(&store).await, [(Cursor { at: now, identity: id(1) }, expected.clone())]);
    assert!(claim(&store, 10, now - Duration::from_millis(1)).await.is_empty());
    let until = now + Duration::from_secs(9);
    let claimed = store.claim_due(10, now, until).await.unwrap();
    assert_eq!(claimed, [Record { test: Test { next: until, ..expected.test.clone() }, ..expected }]);
    // One that says nothing of its country.
    let silent = BridgeDescriptor { country: None, ..descriptor(2, now) };
    store.put(&silent, Partition::Open, now).await.unwrap();
    assert_eq!(record(&store, 2).await.claimed_country, None);
}

async fn a_renewal_keeps_what_tests_found_and_their_schedule(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    let renewed = store.put(&descriptor(1, at(60)), Partition::Private, at(60)).await.unwrap();
    assert_eq!(renewed, kept(Standing::Serving, false));
    let record = record(&store, 1).await;
    assert_eq!(record.test, serving(1, at(0)));
    assert_eq!((record.published, record.expires), (at(60), at(60 + HOUR)));
    assert_eq!(record.partition, Partition::Private, "whoever decides that may decide anew");
    assert!(claim(&store, 10, at(299)).await.is_empty());
    assert_eq!(claim(&store, 10, at(300)).await, [1]);
}

async fn a_replay_is_refused(database: Database) {
    let store = database.open().await;
    put(&store, 1, at(10)).await;
    let before = all(&store).await;
    for published in [at(10), at(10) - Duration::from_millis(1), at(0)] {
        let replayed = store.put(&changed(1, published), Partition::Private, at(20)).await.unwrap();
        assert_eq!(replayed, Put::Replayed);
    }
    assert_eq!(all(&store).await, before);
    let later = descriptor(1, at(10) + Duration::from_millis(1));
    let put = store.put(&later, Partition::Open, at(20)).await.unwrap();
    assert_eq!(put, kept(Standing::Waiting, false));
}

async fn a_withdrawal_ends_what_was_signed_before(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(10)).await;
    let withdraw = async |n, published| store.withdraw(&id(n), published, at(20)).await.unwrap();
    let before = all(&store).await;
    assert_eq!(withdraw(1, at(10)).await, Withdrawn::Replayed);
    assert_eq!(withdraw(2, at(11)).await, Withdrawn::Unknown);
    assert_eq!(all(&store).await, before);
    assert_eq!(withdraw(1, at(11)).await, Withdrawn::Done);
    assert_eq!(withdraw(1, at(11)).await, Withdrawn::Replayed);
    assert_eq!(withdraw(1, at(10)).await, Withdrawn::Replayed);
    let (cursor, record) = all(&store).await.remove(0);
    assert_eq!(cursor.at, at(20));
    assert!(record.withdrawn);
    assert_eq!((record.test.live_until, record.test.egress), (UNIX_EPOCH, None));
    // Its last descriptor does not bring it back.
    let replayed = store.put(&descriptor(1, at(11)), Partition::Open, at(21)).await.unwrap();
    assert_eq!(replayed, Put::Replayed);
    assert_eq!(withdraw(1, at(12)).await, Withdrawn::Done, "a later one moves the bar");
    let replayed = store.put(&descriptor(1, at(12)), Partition::Open, at(21)).await.unwrap();
    assert_eq!(replayed, Put::Replayed);
}

async fn a_renewal_after_a_withdrawal_waits_and_is_tested_again(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    store.withdraw(&id(1), at(10), at(10)).await.unwrap();
    assert_eq!(put(&store, 1, at(20)).await, kept(Standing::Waiting, false));
    let record = record(&store, 1).await;
    assert!(!record.withdrawn);
    assert_eq!((record.test.live_until, record.test.egress), (UNIX_EPOCH, None));
    assert_eq!(claim(&store, 10, at(60)).await, [1]);
}

async fn of_many_puts_at_once_the_latest_stays(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    let puts = (0..20).flat_map(|n| {
        // In an order that is not that of their dates, and each from both.
        let published = at((n * 7) % 20);
        [&one, &two].map(|store| async move {
            let put = store.put(&descriptor(1, published), Partition::Open, at(100)).await.unwrap();
            (published, put)
        })
    });
    let puts = join_all(puts).await;
    let mut kept: Vec<_> = puts.iter().filter(|(_, put)| *put != Put::Replayed).map(|(at, _)| *at).collect();
    let count = kept.len();
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(kept.len(), count, "none was kept twice");
    assert_eq!(kept.last(), Some(&at(19)));
    assert_eq!(all(&two).await.len(), 1);
    assert_eq!(record(&two, 1).await.published, at(19));
}

async fn whoever_is_due_is_claimed_once(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    put(&one, 1, at(0)).await;
    assert_eq!(claim(&one, 10, at(0)).await, [1]);
    assert!(claim(&one, 10, at(0)).await.is_empty());
    assert!(claim(&two, 10, at(59)).await.is_empty());
    assert_eq!(claim(&two, 10, at(60)).await, [1], "whoever had it may have died");
}

async fn those_due_longest_are_claimed_first_and_no_more_than_asked(database: Database) {
    let store = database.open().await;
    for (n, due) in [(1, 3), (2, 1), (3, 4), (4, 2), (5, 9)] {
        put(&store, n, at(due)).await;
    }
    assert!(claim(&store, 0, at(5)).await.is_empty());
    assert_eq!(claim(&store, 2, at(5)).await, [2, 4]);
    assert_eq!(claim(&store, 10, at(5)).await, [1, 3]);
}

async fn the_withdrawn_and_the_expired_are_not_claimed(database: Database) {
    let store = database.open().await;
    put(&store, 1, at(0)).await;
    put(&store, 2, at(0)).await;
    put(&store, 3, at(1)).await;
    store.withdraw(&id(2), at(1), at(1)).await.unwrap();
    assert_eq!(claim(&store, 10, at(HOUR)).await, [3], "the first one expires this very moment");
}

async fn the_withdrawn_and_the_expired_are_due_for_no_test_until_they_are_renewed(database: Database) {
    let store = database.open().await;
    let next = async |n| record(&store, n).await.test.next;
    let never = at(1000 * 366 * 24 * HOUR);
    for n in [1, 2, 3] {
        live(&store, n, Partition::Open, at(0)).await;
    }
    store.withdraw(&id(1), at(1), at(1)).await.unwrap();
    assert!(next(1).await > never, "a withdrawn one is not looked at again and again");
    store.put(&descriptor(3, at(60)), Partition::Open, at(60)).await.unwrap();
    store.expire(at(HOUR)).await.unwrap();
    assert!(next(2).await > never, "nor is one that has expired");
    assert_eq!(next(3).await, at(300));
    // A report changes nothing of that.
    for n in [1, 2] {
        store.hurry(&id(n), at(HOUR), at(HOUR)).await.unwrap();
        assert!(next(n).await > never);
    }
    // They come back, and are as new ones: what was found out is old.
    for n in [1, 2] {
        assert_eq!(put(&store, n, at(HOUR + 5)).await, kept(Standing::Waiting, false));
        let test = record(&store, n).await.test;
        assert_eq!((test.live_until, test.egress, test.next), (UNIX_EPOCH, None, at(HOUR + 5)));
    }
    assert_eq!(claim(&store, 10, at(HOUR + 5)).await, [1, 2, 3]);
    // One that comes back before anybody has tidied up does so, too.
    assert_eq!(put(&store, 4, at(0)).await, kept(Standing::Waiting, true));
    store.note(&id(4), &serving(4, at(1)), at(1)).await.unwrap();
    assert_eq!(put(&store, 4, at(HOUR)).await, kept(Standing::Waiting, false));
}

async fn a_new_one_is_said_to_be_new_once(database: Database) {
    let store = database.open().await;
    let is_new = |put| matches!(put, Put::Kept { new: true, .. });
    assert!(is_new(put(&store, 1, at(0)).await));
    assert!(!is_new(put(&store, 1, at(1)).await), "a renewal");
    assert!(!is_new(store.put(&changed(1, at(2)), Partition::Open, at(2)).await.unwrap()), "another line");
    store.withdraw(&id(1), at(3), at(3)).await.unwrap();
    assert!(!is_new(put(&store, 1, at(4)).await), "it withdrew");
    assert!(!is_new(put(&store, 1, at(4 + HOUR)).await), "it had expired");
    assert!(is_new(put(&store, 2, at(0)).await), "another exit bridge");
    store.expire(at(24 * HOUR)).await.unwrap();
    assert!(is_new(put(&store, 1, at(24 * HOUR)).await), "it was forgotten");
}

async fn claimers_at_once_never_get_the_same(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    for n in 0..60 {
        put(&one, n, at(0)).await;
    }
    let claimers = (0..8).map(|n| {
        let store = [&one, &two][n % 2];
        async move {
            let mut mine = Vec::new();
            // Until all are somebody's. One who finds others busy with the rest may get none of it.
            while mine.len() < 60 {
                match claim(store, 3, at(1)).await {
                    none if none.is_empty() => break,
                    some => {
                        assert!(some.len() <= 3);
                        mine.extend(some);
                    }
                }
            }
            mine
        }
    });
    let mut claimed = join_all(claimers).await.concat();
    claimed.extend(claim(&one, 60, at(1)).await);
    claimed.sort_unstable();
    assert_eq!(claimed, (0..60).collect::<Vec<_>>());
}

async fn a_line_that_changed_is_as_a_new_one(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    store.put(&descriptor(1, at(70)), Partition::Open, at(70)).await.unwrap();
    assert!(claim(&store, 10, at(70)).await.is_empty(), "the line is the same");
    let new = changed(1, at(80));
    let put = store.put(&new, Partition::Open, at(80)).await.unwrap();
    assert_eq!(put, kept(Standing::Waiting, false));
    let waiting = record(&store, 1).await.test;
    assert_eq!((waiting.live_until, waiting.egress), (UNIX_EPOCH, None), "not handed out untested");
    let claimed = store.claim_due(10, at(80), at(140)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].line, new.line);
    // Failures are those of the line.
    store.note(&id(1), &dead(at(90)), at(90)).await.unwrap();
    store.put(&descriptor(1, at(100)), Partition::Open, at(100)).await.unwrap();
    assert_eq!(record(&store, 1).await.test.failures, 0);
}

async fn a_line_that_changes_all_the_time_is_tested_once_a_minute(database: Database) {
    let store = database.open().await;
    let mut tests = 0;
    for n in 0..120 {
        let new = if n % 2 == 0 { descriptor(1, at(n)) } else { changed(1, at(n)) };
        store.put(&new, Partition::Open, at(n)).await.unwrap();
        tests += claim(&store, 10, at(n)).await.len();
    }
    assert_eq!(tests, 2);
}

async fn those_who_serve_are_tested_before_new_ones(database: Database) {
    let store = database.open().await;
    live(&store, 9, Partition::Open, at(0)).await;
    for n in 1..5 {
        put(&store, n, at(1)).await;
    }
    assert_eq!(claim(&store, 1, at(400)).await, [9]);
}

async fn a_line_that_changed_during_a_test_is_tested_again(database: Database) {
    let store = database.open().await;
    put(&store, 1, at(0)).await;
    assert_eq!(claim(&store, 10, at(0)).await, [1]);
    store.put(&changed(1, at(5)), Partition::Open, at(5)).await.unwrap();
    assert_eq!(store.note(&id(1), &serving(1, at(10)), at(10)).await.unwrap(), Noted::Gone);
    assert_eq!(record(&store, 1).await.test.standing, Standing::Waiting);
    assert!(claim(&store, 10, at(59)).await.is_empty());
    assert_eq!(claim(&store, 10, at(60)).await, [1]);
    assert_eq!(store.note(&id(1), &serving(1, at(70)), at(70)).await.unwrap(), Noted::Kept);
    assert_eq!(record(&store, 1).await.test, serving(1, at(70)));
}

async fn only_an_old_test_is_hurried(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    live(&store, 2, Partition::Open, at(0)).await;
    store.hurry(&id(1), at(0), at(100)).await.unwrap();
    store.hurry(&id(9), at(1), at(100)).await.unwrap();
    assert!(claim(&store, 10, at(100)).await.is_empty(), "the test began at that very moment");
    store.hurry(&id(1), at(1), at(100)).await.unwrap();
    assert!(claim(&store, 10, at(99)).await.is_empty());
    assert_eq!(claim(&store, 10, at(100)).await, [1]);
    // It is being tested: no second test for the same report.
    store.hurry(&id(1), at(40), at(100)).await.unwrap();
    assert!(claim(&store, 10, at(100)).await.is_empty());
    // Nor is a test put off that is due anyway, or the withdrawn tested.
    store.hurry(&id(2), at(HOUR), at(400)).await.unwrap();
    assert_eq!(record(&store, 2).await.test.next, at(300));
    store.withdraw(&id(2), at(1), at(1)).await.unwrap();
    let next = record(&store, 2).await.test.next;
    assert!(next > at(300));
    store.hurry(&id(2), at(HOUR), at(200)).await.unwrap();
    assert_eq!(record(&store, 2).await.test.next, next);
}

async fn a_result_is_kept_in_all_its_fields(database: Database) {
    let store = database.open().await;
    let egresses: [Option<IpAddr>; 3] =
        [Some("2001:db8::1:2".parse().unwrap()), Some("203.0.113.255".parse().unwrap()), None];
    let standings = [
        Standing::Waiting,
        Standing::Serving,
        Standing::Unreachable,
        Standing::EgressIsTorRelay,
        Standing::EgressIsSpecial,
        Standing::EgressIsShared,
    ];
    put(&store, 1, at(0)).await;
    claim(&store, 1, at(0)).await;
    for (n, standing) in (0..).zip(standings) {
        let now = at(n) + Duration::from_millis(n);
        let test = Test {
            standing,
            live_until: now + Duration::from_millis(600_001),
            egress: egresses[n as usize % 3],
            country: (n % 2 == 0).then(|| "CH".parse().unwrap()),
            latency: (n % 3 != 2).then(|| Duration::from_millis(n * 1000 + 1)),
            speed: [Speed::Slow, Speed::Medium, Speed::Fast][n as usize % 3],
            failures: u32::MAX * u32::from(n == 3),
            next: now + Duration::from_millis(1),
        };
        assert_eq!(store.note(&id(1), &test, now).await.unwrap(), Noted::Kept);
        let (cursor, record) = all(&store).await.remove(0);
        assert_eq!(record.line, descriptor(1, at(0)).line);
        assert_eq!(store.find(&id(1)).await.unwrap().as_ref(), Some(&record));
        assert_eq!((cursor.at, record.test), (now, test));
    }
}

async fn whatever_is_kept_is_found(database: Database) {
    let store = database.open().await;
    assert!(store.find(&id(1)).await.unwrap().is_none());
    live(&store, 1, Partition::Private, at(0)).await;
    put(&store, 2, at(0)).await;
    store.withdraw(&id(2), at(1), at(1)).await.unwrap();
    for n in [1, 2] {
        let found = store.find(&id(n)).await.unwrap().unwrap();
        assert_eq!((found.withdrawn, found == record(&store, n).await), (n == 2, true));
    }
    assert!(store.find(&id(3)).await.unwrap().is_none());
}

async fn a_result_for_the_withdrawn_or_unknown_changes_nothing(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    put(&store, 2, at(0)).await;
    store.withdraw(&id(2), at(1), at(1)).await.unwrap();
    let before = all(&store).await;
    for n in [2, 3] {
        // Not even with an address that could be taken from somebody.
        let test = Test { egress: serving(1, at(0)).egress, ..serving(n, at(700)) };
        assert_eq!(store.note(&id(n), &test, at(700)).await.unwrap(), Noted::Gone);
        assert_eq!(store.note(&id(n), &test, at(10)).await.unwrap(), Noted::Gone);
        assert_eq!(store.note(&id(n), &dead(at(10)), at(10)).await.unwrap(), Noted::Gone);
    }
    assert_eq!(all(&store).await, before);
}

async fn an_egress_address_has_one_holder_while_it_is_live(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    live(&store, 2, Partition::Open, at(0)).await;
    let before = all(&store).await;
    let shared = |n, now| Test { egress: Some([203, 0, 113, 1].into()), ..serving(n, now) };
    assert_eq!(store.note(&id(2), &shared(2, at(599)), at(599)).await.unwrap(), Noted::EgressShared);
    assert_eq!(all(&store).await, before);
    // Its own address is in nobody's way.
    assert_eq!(store.note(&id(1), &shared(1, at(599)), at(599)).await.unwrap(), Noted::Kept);
    assert_eq!(store.note(&id(2), &shared(2, at(700)), at(700)).await.unwrap(), Noted::EgressShared);
    // One who moved away leaves it free.
    assert_eq!(store.note(&id(1), &serving(3, at(700)), at(700)).await.unwrap(), Noted::Kept);
    assert_eq!(store.note(&id(2), &shared(2, at(700)), at(700)).await.unwrap(), Noted::Kept);
}

async fn an_egress_address_is_free_when_its_holder_is_not_live_any_more(database: Database) {
    let store = database.open().await;
    let shared = |now| Test { egress: Some([203, 0, 113, 1].into()), ..serving(9, now) };
    let take = async |n, now| {
        put(&store, n, now).await;
        store.note(&id(n), &shared(now), now).await.unwrap()
    };
    let holder = async |n| {
        let test = record(&store, n).await.test;
        (test.live_until > UNIX_EPOCH, test.egress.is_some())
    };
    assert_eq!(take(1, at(0)).await, Noted::Kept);
    assert_eq!(take(2, at(599)).await, Noted::EgressShared);
    assert_eq!(take(2, at(600)).await, Noted::Kept, "its tests are too old");
    assert_eq!(holder(1).await, (false, false));
    assert_eq!(
        all(&store).await.iter().filter(|(cursor, _)| cursor.at == at(600)).count(),
        2,
        "all hear of it"
    );
    // Whose descriptor ends before its test does.
    let short = BridgeDescriptor { expires: at(610), ..descriptor(2, at(605)) };
    store.put(&short, Partition::Open, at(605)).await.unwrap();
    assert_eq!(take(3, at(609)).await, Noted::EgressShared);
    assert_eq!(take(3, at(610)).await, Noted::Kept);
    assert_eq!(holder(2).await, (false, false));
    // Who withdrew.
    store.withdraw(&id(3), at(611), at(611)).await.unwrap();
    assert_eq!(take(4, at(612)).await, Noted::Kept);
}

async fn of_results_at_once_with_one_egress_address_one_is_kept(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    for n in 0..20 {
        put(&one, n, at(0)).await;
    }
    // For the first round the address is free, for the second one its holder is not live any more.
    for now in [at(0), at(600)] {
        let notes = (0..20).map(|n| {
            let test = Test { egress: Some([203, 0, 113, 1].into()), ..serving(n, now) };
            let store = [&one, &two][usize::from(n) % 2];
            async move { store.note(&id(n), &test, now).await.unwrap() }
        });
        let noted = join_all(notes).await;
        assert_eq!(noted.iter().filter(|noted| **noted == Noted::Kept).count(), 1);
        assert_eq!(noted.iter().filter(|noted| **noted == Noted::EgressShared).count(), 19);
        let all = all(&one).await;
        assert_eq!(all.iter().filter(|(_, record)| record.test.egress.is_some()).count(), 1);
        assert_eq!(all.iter().filter(|(_, record)| record.test.live_until > now).count(), 1);
    }
}

async fn a_test_that_fails_gives_up_the_egress_address(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    put(&store, 2, at(0)).await;
    assert_eq!(store.note(&id(1), &dead(at(10)), at(10)).await.unwrap(), Noted::Kept);
    let test = Test { egress: serving(1, at(0)).egress, ..serving(2, at(10)) };
    assert_eq!(store.note(&id(2), &test, at(10)).await.unwrap(), Noted::Kept);
}

async fn changes_come_in_order_and_in_pages(database: Database) {
    let store = database.open().await;
    for (n, now) in [(5, 2), (3, 1), (1, 2), (4, 2), (2, 2), (7, 2), (6, 3)] {
        put(&store, n, at(now)).await;
    }
    let read = async |mut cursor, limit| {
        let mut read = Vec::new();
        loop {
            let page = store.changes(cursor, limit).await.unwrap();
            assert!(page.len() <= limit as usize);
            let Some((last, _)) = page.last() else { return read };
            cursor = *last;
            read.extend(page.iter().map(|(_, record)| record.identity()[0]));
        }
    };
    for limit in [1, 2, 3, 7, 100] {
        assert_eq!(read(Cursor::before(UNIX_EPOCH), limit).await, [3, 1, 2, 4, 5, 7, 6]);
    }
    assert_eq!(read(Cursor::before(at(2)), 2).await, [1, 2, 4, 5, 7, 6]);
    assert_eq!(read(Cursor { at: at(2), identity: id(4) }, 2).await, [5, 7, 6]);
    assert!(read(Cursor { at: at(3), identity: id(6) }, 2).await.is_empty());
    // Whatever is changed comes last.
    store.withdraw(&id(1), at(4), at(4)).await.unwrap();
    put(&store, 3, at(5)).await;
    store.note(&id(2), &dead(at(6)), at(6)).await.unwrap();
    assert_eq!(read(Cursor { at: at(2), identity: id(7) }, 2).await, [6, 1, 3, 2]);
}

async fn what_could_be_replayed_is_not_forgotten(database: Database) {
    let store = database.open().await;
    let validity = MAX_VALIDITY.as_secs();
    put(&store, 1, at(0)).await; // expires after an hour, but another one signed by then may be valid for longer
    let long = BridgeDescriptor { expires: at(validity), ..descriptor(2, at(0)) };
    store.put(&long, Partition::Open, at(0)).await.unwrap();
    put(&store, 3, at(1)).await;
    put(&store, 4, at(0)).await;
    store.withdraw(&id(4), at(2), at(2)).await.unwrap();
    assert_eq!(store.expire(at(validity) - Duration::from_millis(1)).await.unwrap(), 0);
    assert_eq!(store.expire(at(validity)).await.unwrap(), 2);
    assert_eq!(all(&store).await.iter().map(|(_, r)| r.identity()[0]).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(store.expire(at(validity + 1)).await.unwrap(), 1);
    assert_eq!(store.expire(at(validity + 2)).await.unwrap(), 1, "a withdrawal is kept as long");
    assert!(all(&store).await.is_empty());
}

async fn the_valid_and_not_withdrawn_are_counted(database: Database) {
    let store = database.open().await;
    assert_eq!(store.counts(at(0)).await.unwrap(), Counts::default());
    let registered = async |now| store.counts(now).await.unwrap().registered;
    let untested = async |now| store.counts(now).await.unwrap().untested;
    for (n, now) in [(1, 0), (2, 1), (3, 2)] {
        put(&store, n, at(now)).await;
    }
    assert_eq!(registered(at(2)).await, 3);
    assert_eq!(registered(at(HOUR)).await, 2);
    assert_eq!(untested(at(HOUR)).await, 2);
    claim(&store, 10, at(3)).await;
    store.note(&id(2), &serving(2, at(4)), at(4)).await.unwrap();
    assert_eq!(untested(at(HOUR)).await, 1);
    store.withdraw(&id(3), at(3), at(3)).await.unwrap();
    assert_eq!(registered(at(HOUR)).await, 1);
    assert_eq!(registered(at(HOUR + 1)).await, 0);
}

async fn whatever_is_kept_is_counted(database: Database) {
    let store = database.open().await;
    let kept = async |now| store.counts(now).await.unwrap().kept;
    for n in [1, 2, 3] {
        put(&store, n, at(0)).await;
    }
    store.withdraw(&id(1), at(1), at(1)).await.unwrap();
    let short = BridgeDescriptor { expires: at(3), ..descriptor(2, at(2)) };
    store.put(&short, Partition::Open, at(2)).await.unwrap();
    let counts = store.counts(at(10)).await.unwrap();
    assert_eq!((counts.kept, counts.registered), (3, 1), "one has withdrawn, one has expired");
    store.expire(at(10)).await.unwrap();
    assert_eq!(kept(at(10)).await, 3);
    store.expire(at(24 * HOUR)).await.unwrap();
    assert_eq!(kept(at(24 * HOUR)).await, 0);
}

async fn those_who_serve_and_wait_for_their_test_are_counted(database: Database) {
    let store = database.open().await;
    let overdue = async |now| store.counts(now).await.unwrap().overdue;
    for n in [1, 2, 3] {
        live(&store, n, Partition::Open, at(0)).await;
    }
    put(&store, 4, at(0)).await; // never tested: nobody is given it meanwhile
    store.withdraw(&id(3), at(1), at(1)).await.unwrap();
    assert_eq!(overdue(at(300)).await, 0, "their tests are due now");
    assert_eq!(overdue(at(359)).await, 0, "a little late");
    assert_eq!(overdue(at(360)).await, 2);
    claim(&store, 1, at(360)).await;
    assert_eq!(overdue(at(360)).await, 1, "one is being tested");
    assert_eq!(overdue(at(HOUR)).await, 0, "they have expired");
}

async fn the_secret_is_made_once(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    let secrets =
        join_all([&one, &two, &one, &two].map(|store| async { store.secret().await.unwrap() })).await;
    assert_eq!(secrets.iter().collect::<HashSet<_>>().len(), 1);
    assert_ne!(secrets[0], [0; 32]);
    assert_eq!(database.open().await.secret().await.unwrap(), secrets[0], "and kept");
}

async fn many_can_open_it_at_once(database: Database) {
    // On threads of their own, since one of the databases is opened by a call that blocks.
    let secrets = join_all((0..8).map(|_| {
        let (url, runtime) = (database.url.clone(), Handle::current());
        spawn_blocking(move || runtime.block_on(async { open(&url).await.secret().await.unwrap() }))
    }));
    let secrets: HashSet<_> = secrets.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(secrets.len(), 1);
}

/// Whom the pool gives at `now`.
async fn lines(store: &Arc<dyn Store>, pool: &str, now: SystemTime) -> Vec<u8> {
    let lines = store.pool_lines(pool, now).await.unwrap();
    lines.iter().map(|line| line.reach.identity()[0]).collect()
}

async fn a_pool_is_filled_from_the_private_and_live(database: Database) {
    let store = database.open().await;
    live(&store, 1, Partition::Open, at(0)).await;
    live(&store, 2, Partition::Reserve, at(0)).await;
    for n in 3..8 {
        live(&store, n, Partition::Private, at(0)).await;
    }
    store.put(&descriptor(8, at(0)), Partition::Private, at(0)).await.unwrap(); // never tested
    store.withdraw(&id(3), at(1), at(1)).await.unwrap();
    store.note(&id(4), &dead(at(1)), at(1)).await.unwrap();
    let short = BridgeDescriptor { expires: at(10), ..descriptor(5, at(1)) };
    store.put(&short, Partition::Private, at(1)).await.unwrap();

    store.set_pool("press", 9).await.unwrap();
    assert!(lines(&store, "press", at(20)).await.is_empty(), "nobody has filled it yet");
    store.fill_pool("press", at(20)).await.unwrap();
    assert_eq!(lines(&store, "press", at(20)).await, [6, 7]);
    let pool = |live| Pool { name: "press".into(), size: 9, live };
    assert_eq!(store.pools(at(20)).await.unwrap(), [pool(2)]);
    // Those that work are given, at any time; and the place of one that does not is filled.
    store.set_pool("press", 2).await.unwrap();
    store.note(&id(6), &dead(at(30)), at(30)).await.unwrap();
    live(&store, 9, Partition::Private, at(30)).await;
    assert_eq!(lines(&store, "press", at(30)).await, [7]);
    store.fill_pool("press", at(30)).await.unwrap();
    assert_eq!(lines(&store, "press", at(30)).await, [7, 9]);
    // One that works again is in it still.
    store.note(&id(6), &serving(6, at(40)), at(40)).await.unwrap();
    store.fill_pool("press", at(40)).await.unwrap();
    assert_eq!(lines(&store, "press", at(40)).await, [6, 7, 9]);
    assert_eq!(lines(&store, "press", at(600)).await, [6, 9]);
    // One that is private no more is given no more.
    store.put(&descriptor(9, at(50)), Partition::Open, at(50)).await.unwrap();
    assert_eq!(lines(&store, "press", at(50)).await, [6, 7]);
}

async fn a_pool_that_shrinks_keeps_those_it_has(database: Database) {
    let store = database.open().await;
    for n in 1..=6 {
        live(&store, n, Partition::Private, at(0)).await;
    }
    let resize = async |size| {
        store.set_pool("press", size).await.unwrap();
        store.fill_pool("press", at(0)).await.unwrap();
        lines(&store, "press", at(0)).await
    };
    assert_eq!(resize(3).await, [1, 2, 3]);
    assert_eq!(resize(1).await, [1, 2, 3]);
    assert_eq!(store.pools(at(0)).await.unwrap(), [Pool { name: "press".into(), size: 1, live: 3 }]);
    assert_eq!(resize(4).await, [1, 2, 3, 4]);
    assert_eq!(resize(0).await, [1, 2, 3, 4]);
}

async fn no_exit_bridge_is_in_two_pools(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    for n in 0..40 {
        live(&one, n, Partition::Private, at(0)).await;
    }
    let names: Vec<String> = (0..10).map(|n| format!("pool {n}")).collect();
    for name in &names {
        one.set_pool(name, 5).await.unwrap();
    }
    // Each by both, as their tidying does. Nobody loses one that was given out already.
    let fills = names.iter().flat_map(|name| {
        [&one, &two].map(|store| async move {
            store.fill_pool(name, at(0)).await.unwrap();
            (name, lines(store, name, at(0)).await)
        })
    });
    for (name, given) in join_all(fills).await {
        assert_eq!(lines(&one, name, at(0)).await, given);
        assert!(given.len() <= 5);
    }
    let mut all = Vec::new();
    for name in &names {
        all.extend(lines(&one, name, at(0)).await);
    }
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
}

async fn a_pool_that_ended_leaves_its_exit_bridges_to_others(database: Database) {
    let store = database.open().await;
    for n in 1..=3 {
        live(&store, n, Partition::Private, at(0)).await;
    }
    assert!(!store.remove_pool("press").await.unwrap());
    store.fill_pool("press", at(0)).await.unwrap();
    assert!(lines(&store, "press", at(0)).await.is_empty(), "there is no such pool");
    store.set_pool("press", 9).await.unwrap();
    store.fill_pool("press", at(0)).await.unwrap();
    assert!(store.remove_pool("press").await.unwrap());
    assert!(!store.remove_pool("press").await.unwrap());
    assert!(lines(&store, "press", at(0)).await.is_empty());
    assert!(store.pools(at(0)).await.unwrap().is_empty());
    store.set_pool("friends", 9).await.unwrap();
    store.fill_pool("friends", at(0)).await.unwrap();
    assert_eq!(lines(&store, "friends", at(0)).await, [1, 2, 3]);
}

async fn a_pool_that_is_filled_while_it_ends_holds_nobody(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    for n in 1..=3 {
        live(&one, n, Partition::Private, at(0)).await;
    }
    for _ in 0..20 {
        one.set_pool("press", 9).await.unwrap();
        let fill = one.fill_pool("press", at(0));
        let (filled, removed) = futures::join!(fill, two.remove_pool("press"));
        filled.unwrap();
        assert!(removed.unwrap());
    }
    one.set_pool("friends", 9).await.unwrap();
    one.fill_pool("friends", at(0)).await.unwrap();
    assert_eq!(lines(&one, "friends", at(0)).await, [1, 2, 3]);
}

async fn pools_are_listed_by_name(database: Database) {
    let store = database.open().await;
    for (name, size) in [("b", 1), ("ä", 2), ("B", 3), ("a b", 4), ("a", u32::MAX)] {
        store.set_pool(name, size).await.unwrap();
    }
    let pools = store.pools(at(0)).await.unwrap();
    let pools: Vec<_> = pools.iter().map(|pool| (pool.name.as_str(), pool.size, pool.live)).collect();
    assert_eq!(pools, [("B", 3, 0), ("a", u32::MAX, 0), ("a b", 4, 0), ("b", 1, 0), ("ä", 2, 0)]);
}

async fn replicas_give_a_ticket_the_same_answer(database: Database) {
    let (one, two) = (database.open().await, database.open().await);
    let now = SystemTime::now();
    let mine = Index::new(one.secret().await.unwrap());
    let theirs = Index::new(two.secret().await.unwrap());
    let start = Cursor::before(UNIX_EPOCH);
    let choose = |index: &Index, ticket| {
        let ring = index.ring();
        let chosen = ring.choose(&TicketId([ticket; 32]), &Wishes::default(), 3, now);
        chosen.into_iter().map(|member| member.line.reach.identity()[0]).collect::<Vec<_>>()
    };
    for n in 0..50 {
        live([&one, &two][usize::from(n) % 2], n, Partition::Open, now).await;
    }
    let last = mine.catch_up(one.as_ref(), start).await.unwrap();
    theirs.catch_up(two.as_ref(), start).await.unwrap();
    assert_eq!((mine.ring().len(), theirs.ring().len()), (50, 50));
    for ticket in 0..20 {
        assert_eq!(choose(&mine, ticket).len(), 3);
        assert_eq!(choose(&mine, ticket), choose(&theirs, ticket));
    }
    // What one is told the other one hears of.
    let gone = choose(&theirs, 1)[0];
    let later = now + Duration::from_secs(1);
    one.withdraw(&id(gone), later, later).await.unwrap();
    theirs.catch_up(two.as_ref(), Cursor::before(last)).await.unwrap();
    assert!(!choose(&theirs, 1).contains(&gone));
    mine.catch_up(one.as_ref(), Cursor::before(last)).await.unwrap();
    for ticket in 0..20 {
        assert_eq!(choose(&mine, ticket), choose(&theirs, ticket));
    }
}
