#![no_main]
//! A set of ports that is read is written back to the same set, and never holds port 0.

use eebt_proto::PortSet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(set) = text.parse::<PortSet>() {
        assert!(!set.contains(0));
        assert_eq!(set.to_string().parse::<PortSet>(), Ok(set));
    }
});
