//! What [`eebt_provisioner::cloud::Cloud`] promises, held against a cloud. `eebt` finds credentials in its environment, so
//! this runs in a process of its own that has such an environment (`Account::in_environment`).

use std::time::{Duration, SystemTime};

use eebt_provisioner::Provider;
use eebt_provisioner::cloud::{
    Cloud, Clouds, Condition, Cost, Machine, MicroUsd, Offer, Order, Query, Tags, Trouble,
};
use serde_json::json;

use crate::emulator::{alive, test};

/// The cloud at this port, as the tests steer it.
struct Steered<'a> {
    cloud: &'a dyn Cloud,
    port: u16,
    region: &'a str,
    create: &'a str,
}

fn query(kinds: &[&str]) -> Query {
    let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    Query { kinds, arch: "x86_64".into(), image: None, on_demand: None }
}

impl Steered<'_> {
    fn order(&self, provider: Provider, offer: &Offer, id: &str) -> Order {
        let now = SystemTime::now();
        // Tags have whole seconds.
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3600;
        Order {
            provider,
            token: format!("0123456789abcdef-{id}-0"),
            given: now,
            region: self.region.into(),
            offer: offer.clone(),
            port: 34_567,
            ssh_key: None,
            user_data: "#!/bin/sh\n".into(),
            tags: Tags {
                fleet: "0123456789abcdef".into(),
                id: id.into(),
                attempt: "attempt2".into(),
                expires: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                cost: Cost { hour: MicroUsd(8301), traffic: MicroUsd(198_000) },
            },
        }
    }

    fn fault(&self, fault: &str) {
        test(self.port, "faults", &json!({ "action": self.create, "fault": fault, "times": 99 }));
    }

    fn clear(&self) {
        test(self.port, "clear", &json!({}));
    }

    /// What an order bought, though lists may lag behind.
    fn found(&self, order: &Order) -> Machine {
        for _ in 0..10 {
            match self.cloud.find(order) {
                Ok(Some(machine)) => return machine,
                Ok(None) => panic!("an order that bought something bought nothing"),
                Err(error) => assert_eq!(error.trouble, Trouble::Unknown, "{error}"),
            }
        }
        panic!("not found");
    }

    fn listed(&self, id: &str) -> Option<Machine> {
        self.cloud.list(self.region).unwrap().into_iter().find(|machine| machine.tags.id == id)
    }
}

/// Holds a cloud to it.
pub fn hold(provider: Provider, region: &str, create: &str, port: u16) {
    let clouds = Clouds::default();
    let cloud = clouds.get(provider).unwrap();
    let steered = Steered { cloud, port, region, create };
    assert!(cloud.regions().unwrap().iter().any(|known| known == region));

    let offers = cloud.offers(region, &query(&[])).unwrap();
    assert!(offers.len() > 1 && offers.iter().all(|offer| offer.price.0 > 0 && !offer.image.is_empty()));
    assert!(offers.is_sorted_by_key(|offer| offer.price), "{offers:?}");
    let (best, last) = (&offers[0], offers.last().unwrap());
    let of_last = cloud.offers(region, &query(&[&last.kind])).unwrap();
    assert!(!of_last.is_empty() && of_last.iter().all(|offer| offer.kind == last.kind), "{of_last:?}");
    assert_eq!(cloud.offers(region, &query(&["no.such"])).unwrap(), []);
    for finding in cloud.examine(region, &query(&[&best.kind])) {
        assert!(finding.result.is_ok(), "{finding:?}");
    }
    assert_eq!(alive(port).len(), 0, "looking buys nothing");

    // One that is bought is known by its tags, and gets an address.
    let first = steered.order(provider, best, "first222");
    let machine = cloud.create(&first).unwrap();
    assert_eq!((&machine.tags, machine.condition), (&first.tags, Condition::Alive));
    let addressed = (0..5).find_map(|_| steered.listed("first222").filter(|found| found.address.is_some()));
    let addressed = addressed.expect("an address");
    assert_eq!((&addressed.name, &addressed.tags, &addressed.kind), (&machine.name, &first.tags, &best.kind));
    let described = cloud.describe(region, &machine.name).unwrap().unwrap();
    assert_eq!((described.name, described.tags), (machine.name.clone(), first.tags.clone()));
    assert_eq!(steered.found(&first).name, machine.name);

    // The same where lists lag behind, and where the answer is lost.
    test(port, "lag", &json!({ "calls": 2 }));
    let second = steered.order(provider, best, "second22");
    let bought = cloud.create(&second).unwrap();
    assert_eq!(steered.found(&second).name, bought.name);
    // What else the order said may have changed since (IdempotentParameterMismatch): it bought that machine all the same.
    let changed = Order { user_data: "#!/bin/sh\n# other\n".into(), ..second.clone() };
    assert_eq!(steered.found(&changed).name, bought.name);
    steered.fault("lost");
    let third = steered.order(provider, best, "third222");
    assert_eq!(cloud.create(&third).unwrap_err().trouble, Trouble::Unknown);
    steered.clear();
    let found = steered.found(&third);
    assert_eq!((found.tags.id.as_str(), alive(port).len()), ("third222", 3));

    // An order that was not carried out, and no answer came.
    steered.fault("cut");
    let fourth = steered.order(provider, best, "fourth22");
    assert_eq!(cloud.create(&fourth).unwrap_err().trouble, Trouble::Unknown);
    steered.clear();
    let mut to_end = vec![machine.name.clone(), bought.name, found.name];
    match cloud.find(&fourth) {
        Ok(bought_by_asking) => to_end.extend(bought_by_asking.map(|machine| machine.name)),
        Err(error) => {
            assert!(error.said.contains("may still appear"), "{error}");
            let long_ago = Order { given: SystemTime::now() - Duration::from_secs(3600), ..fourth.clone() };
            assert_eq!(cloud.find(&long_ago).unwrap(), None);
        }
    }

    for (fault, trouble) in
        [("denied", Trouble::Permission), ("quota", Trouble::Quota), ("capacity", Trouble::Capacity)]
    {
        steered.fault(fault);
        let error = cloud.create(&steered.order(provider, best, "fifth222")).unwrap_err();
        assert!(error.trouble == trouble && error.is_certain() && error.hint.is_some(), "{fault}: {error:?}");
        steered.clear();
    }
    steered.fault("throttle");
    let error = cloud.create(&steered.order(provider, best, "sixth222")).unwrap_err();
    assert!(error.trouble == Trouble::Throttled && error.is_certain(), "{error:?}");
    steered.clear();

    // Ended is ended, said once or twice.
    cloud.terminate(region, &to_end).unwrap();
    cloud.terminate(region, &to_end).unwrap();
    assert_eq!(alive(port).len(), 0);
    for id in ["first222", "second22", "third222", "fourth22"] {
        assert!(steered.listed(id).is_none_or(|machine| machine.condition == Condition::Gone), "{id}");
    }
    assert_eq!(cloud.describe(region, &machine.name).unwrap(), None);
    let long_ago = Order { given: SystemTime::now() - Duration::from_secs(3600), ..first };
    assert_eq!(cloud.find(&long_ago).unwrap(), None, "what is gone was not bought again by asking");
    cloud.tidy(region, "0123456789abcdef", &|| Ok(std::collections::HashSet::new())).unwrap();
    assert_eq!(test(port, "state", &json!({}))["groups"], json!([]), "nothing is left behind");
    assert_eq!(alive(port).len(), 0);
}
