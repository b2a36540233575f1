#![no_main]
//! A bridge line that is read is written back to one that reads the same.

use eebt_proto::BridgeLine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<BridgeLine>() {
        Ok(line) => assert!(line.to_string().parse::<BridgeLine>().is_ok_and(|again| again == line)),
        Err(error) => assert!(error.to_string().starts_with("bridge line: ")),
    }
});
