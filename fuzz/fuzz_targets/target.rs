#![no_main]
//! A host that is read is an address or a plain public name, and reads the same again.

use eebt_proto::{Host, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, u16)| {
    let (text, port) = input;
    let Ok(target) = Target::new(text, port) else { return };
    assert_ne!(target.port, 0);
    if let Host::Name(name) = &target.host {
        assert!(name.contains('.') && name.len() <= 253 && !name.ends_with(".onion"));
        assert!(name.parse::<std::net::IpAddr>().is_err());
        assert!(Target::new(name, port) == Ok(target.clone()));
    }
});
