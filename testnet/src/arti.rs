//! The network file: what an Arti program needs to know to live on this network instead of the public one.

use std::fmt::Write;

use crate::torrc::{RelayInfo, Role};

/// Arti configuration in TOML.
pub(crate) fn network_file(relays: &[RelayInfo], v3idents: &[&str]) -> String {
    let mut text = String::from(
        "# Arti configuration for one private Tor network; written by testnet, good for as long as it is up.\n\
         [path_rules]\n\
         ipv4_subnet_family_prefix = 33 # all relays share 127.0.0.0/8 and are no family\n\
         ipv6_subnet_family_prefix = 129\n\
         \n\
         [address_filter]\n\
         allow_local_addrs = true\n\
         \n\
         [override_net_params]\n\
         cbtmintimeout = 10000 # ms; or the timeout learned on loopback fails every slower circuit\n\
         \n\
         [tor_network]\n\
         fallback_caches = [\n",
    );
    for relay in relays.iter().filter(|r| r.role != Role::Exit) {
        let _ = writeln!(
            text,
            "    {{ rsa_identity = \"{}\", ed_identity = \"{}\", orports = [\"{}\"] }},",
            relay.rsa_identity,
            relay.ed_identity,
            relay.or_addr()
        );
    }
    let quoted: Vec<_> = v3idents.iter().map(|id| format!("\"{id}\"")).collect();
    let _ = writeln!(text, "]\nauthorities = {{ v3idents = [{}] }}", quoted.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_caches_and_authorities() {
        let relay = RelayInfo {
            nickname: "auth1".into(),
            role: Role::Authority,
            address: [127, 64, 1, 1].into(),
            orport: 9001,
            rsa_identity: "AB".into(),
            ed_identity: "cd".into(),
        };
        let exit = RelayInfo { role: Role::Exit, rsa_identity: "EE".into(), ..relay.clone() };
        let text = network_file(&[relay, exit], &["11", "22"]);
        assert!(
            text.contains(r#"{ rsa_identity = "AB", ed_identity = "cd", orports = ["127.64.1.1:9001"] }"#)
        );
        assert!(text.contains(r#"v3idents = ["11", "22"]"#));
        assert!(!text.contains("EE"));
    }
}
