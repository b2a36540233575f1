//! A stand-in for `eebt-client check`: says of each bridge line what a file says, without Tor.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;

use eebt_proto::{BridgeLine, Reach};
use serde_json::json;

/// What the file `FAKE_SAYS` holds, as JSON; nothing of it if there is none. Read again for each line.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Says {
    /// Addresses that do not serve.
    silent: Vec<String>,
    /// Pages that turn addresses away.
    blocked: BTreeMap<String, Vec<String>>,
    /// There is no way into Tor.
    no_tor: bool,
    /// It ends at the next line.
    ends: bool,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    assert!(args[0] == "check" && has("--stdin") && has("--json"), "{args:?}");
    let pages: Vec<&String> =
        args.windows(2).filter(|pair| pair[0] == "--visit").map(|pair| &pair[1]).collect();
    assert!(
        std::env::vars_os().all(|(name, _)| {
            let name = name.to_string_lossy();
            !["AWS_", "HCLOUD_", "DIGITALOCEAN_"].iter().any(|begin| name.starts_with(begin))
        }),
        "no credentials"
    );
    for (n, text) in std::io::stdin().lines().map_while(Result::ok).enumerate() {
        let says = std::env::var("FAKE_SAYS").ok().and_then(|path| std::fs::read_to_string(path).ok());
        let says: Says = says.map(|text| serde_json::from_str(&text).unwrap()).unwrap_or_default();
        if says.ends {
            eprintln!("error: no luck\nhint: none");
            std::process::exit(1);
        }
        let line: BridgeLine = text.parse().unwrap();
        let Reach::Circuit(reach) = &line.reach else { panic!("{text}") };
        let ip = reach.addresses[0].ip().to_string();
        let serves = !says.no_tor && !says.silent.contains(&ip);
        let result = |page: &String| match says.blocked.get(page) {
            Some(ips) if ips.contains(&ip) => "blocked",
            _ => "open",
        };
        let visits: Vec<_> =
            pages.iter().map(|page| json!({ "page": page, "result": result(page) })).collect();
        let error = (!serves).then_some("no answer");
        println!(
            "{}",
            json!({ "line": n + 1, "serves": serves, "seconds": 0.1, "error": error, "no_tor": says.no_tor,
                "visits": if serves { visits } else { Vec::new() } })
        );
    }
}
