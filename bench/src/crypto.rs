//! What encryption alone costs, as no client and no exit bridge can be cheaper: AES-128 in counter mode for each
//! hop and a running SHA-1 (tor-spec, "Relay cells"), and TLS 1.3 on one link. Where both ends have Counter Galois Onion
//! (proposal 359), as all of ours do, they use that, which costs more.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cipher::{KeyIvInit as _, StreamCipher as _};
use digest::Digest as _;
use nix::time::{ClockId, clock_gettime};
use tor_llcrypto::cipher::aes::Aes128Ctr;
use tor_llcrypto::d::Sha1;

use crate::figures::Unit;
use crate::report::{Report, Sample};

/// `eebt-client` on a circuit of three hops.
pub const CLIENT: &str = "encryption of a client";
/// `eebt-bridge`.
pub const EXIT_BRIDGE: &str = "encryption of an exit bridge";

/// Bytes of a cell, of the part that each hop encrypts, and of a stream's data in it.
const CELL: usize = 514;
const BODY: usize = 509;
const DATA: usize = 498;

/// Whole cells that fit into one TLS record.
const CELLS_IN_RECORD: usize = (1 << 14) / CELL;

/// Records for one sample: about 100 MB of data.
const RECORDS: usize = 100_000_000 / (CELLS_IN_RECORD * DATA);

/// Measures both.
pub fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..rounds {
        for (path, hops) in [(CLIENT, 3), (EXIT_BRIDGE, 1)] {
            report.add(Sample {
                figure: "cpu_of_encryption".to_owned(),
                path: path.to_owned(),
                latency_ms: 0.0,
                unit: Unit::CpuSecondsPer100Mb,
                value: one_way(hops)?.as_secs_f64(),
            });
        }
    }
    Ok(())
}

/// Processor time of this thread for 100 MB in one direction.
fn one_way(hops: usize) -> anyhow::Result<Duration> {
    let layer = |_| Aes128Ctr::new(&[1; 16].into(), &[0; 16].into());
    let mut layers: Vec<Aes128Ctr> = (0..hops).map(layer).collect();
    let mut digest = Sha1::new();
    let tls = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[2; 32])?);
    let mut record = Vec::with_capacity(1 << 15);
    record.resize(CELLS_IN_RECORD * CELL, 7);
    let before = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    for n in 0..RECORDS as u64 {
        for cell in record.chunks_exact_mut(CELL) {
            let body = &mut cell[CELL - BODY..];
            digest.update(&*body);
            // The first four bytes of the digest so far go into each cell.
            let so_far = digest.clone().finalize();
            body[5..9].copy_from_slice(&so_far[..4]);
            for layer in &mut layers {
                layer.apply_keystream(body);
            }
        }
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&n.to_be_bytes());
        tls.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;
        record.truncate(CELLS_IN_RECORD * CELL);
    }
    std::hint::black_box(&record);
    let used = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    Ok(used - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_hops_cost_more() {
        let (one, three) = (one_way(1).unwrap(), one_way(3).unwrap());
        assert!(one > Duration::from_millis(10), "{one:?}");
        assert!(three > one, "{three:?}, {one:?}");
    }
}
