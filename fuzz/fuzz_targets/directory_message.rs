#![no_main]
//! A message to or from an exit-bridge directory that is read is written back to one that reads the same.

use std::fmt::Debug;

use eebt_proto::directory::{Ask, ErrorBody, HandOut, Registered, Report};
use eebt_proto::{TicketTerms, from_json};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Written once, it is in the form that we write: times to the millisecond, bridge lines to the second.
fn again<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    match from_json::<T>(bytes) {
        Ok(message) => {
            let written = serde_json::to_vec(&message).unwrap();
            let read: T = from_json(&written).unwrap();
            assert_eq!(serde_json::to_vec(&read).unwrap(), written);
            assert_eq!(from_json::<T>(&serde_json::to_vec(&read).unwrap()).unwrap(), read);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fuzz_target!(|bytes: &[u8]| {
    // The first byte says which; a valid JSON text is all that is left then.
    let Some((kind, text)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => again::<Ask>(text),
        1 => again::<Report>(text),
        2 => again::<HandOut>(text),
        3 => again::<Registered>(text),
        4 => again::<TicketTerms>(text),
        _ => again::<ErrorBody>(text),
    }
});
