//! How many exit bridges may register: each counts once, and for as long as something of it is kept.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Answer, Client, Running, body, descriptor, signed, withdrawal};
use eebt_proto::directory::{DESCRIPTORS, WITHDRAWALS};
use hebtor_directory::api::Api;
use hebtor_directory::metrics::Metrics;
use hebtor_directory::store::Store;
use hebtor_directory::store::sqlite::Sqlite;
use tempfile::TempDir;

/// A directory, and what it counts.
struct Place {
    directory: Running,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    _folder: TempDir,
}

impl Place {
    async fn new(change: impl FnOnce(&mut Api)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&folder.path().join("directory.db")).unwrap());
        let metrics = Arc::new(Metrics::default());
        let directory = Running::start(Arc::clone(&store), |api| {
            api.metrics = Arc::clone(&metrics);
            change(api);
        })
        .await;
        Self { directory, store, metrics, _folder: folder }
    }

    fn client(&self) -> Client {
        Client::new(self.directory.addr)
    }

    /// Counts anew, as a directory does every 30 s.
    async fn count(&self, now: SystemTime) {
        self.store.expire(now).await.unwrap();
        self.metrics.set_counts(self.store.counts(now).await.unwrap());
    }
}

fn millis(n: u32) -> Duration {
    Duration::from_millis(n.into())
}

/// Exit bridge `n` registers, or renews.
async fn register(client: &mut Client, n: u32, published: SystemTime) -> Answer {
    client.post(DESCRIPTORS, &body(&signed(&descriptor(n, published), n))).await
}

fn is_full(answer: &Answer) -> bool {
    (answer.status, answer.code().as_deref()) == (503, Some("full"))
}

#[tokio::test]
async fn renewals_take_no_room() {
    let place = Place::new(|api| api.max_untested = 10).await;
    let (mut client, now) = (place.client(), SystemTime::now());
    for n in 0..20 {
        assert_eq!(register(&mut client, 0, now + millis(n * 2001)).await.status, 200, "renewal {n}");
    }
    for n in 1..10 {
        let answer = register(&mut client, n, now).await;
        assert_eq!(answer.status, 200, "somebody else: {answer:?}");
    }
    assert!(is_full(&register(&mut client, 10, now).await), "now there are ten");
    assert_eq!(register(&mut client, 3, now + millis(2001)).await.status, 200, "one that is here already");
}

#[tokio::test]
async fn those_that_withdrew_take_room_while_they_are_kept() {
    let place = Place::new(|api| api.max_registered = 10).await;
    let (mut client, now) = (place.client(), SystemTime::now());
    for n in 0..10 {
        assert_eq!(register(&mut client, n, now).await.status, 200);
        let gone = client.post(WITHDRAWALS, &body(&withdrawal(n, now + millis(1)))).await;
        assert_eq!(gone.status, 204);
    }
    for _ in 0..2 {
        assert!(is_full(&register(&mut client, 10, now).await));
        place.count(now).await;
    }
    assert_eq!(register(&mut client, 3, now + millis(2001)).await.status, 200, "one that comes back");
    let later = now + Duration::from_secs(4 * 3600);
    place.count(later).await;
    assert_eq!(register(&mut client, 10, now).await.status, 200, "they are forgotten");
}
