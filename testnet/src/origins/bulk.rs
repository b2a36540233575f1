//! Bodies of any size that both ends can compute: byte i depends on i alone.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Bytes of one pseudo-random word.
const WORD: u64 = 8;

/// Writes the bytes of the body that begin at `offset`.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let bytes = word(at / WORD).to_le_bytes();
        let from = usize::try_from(at % WORD).unwrap_or_default();
        let n = rest.len().min(bytes.len() - from);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&bytes[from..from + n]);
        rest = later;
        at += n as u64;
    }
}

/// A counter, stirred: consecutive words share nothing that a compressor or a bug could live on.
fn word(index: u64) -> u64 {
    let mut x = index.wrapping_add(0x5eed).wrapping_mul(0xd134_2543_de82_ef95);
    x = (x ^ (x >> 32)).wrapping_mul(0xdaba_0b6e_b093_22e3);
    x = (x ^ (x >> 29)).wrapping_mul(0x9e6f_0e4d_3a5b_17c9);
    x ^ (x >> 32)
}

/// The SHA-256 of the first `len` bytes, in hex. Takes about 1 ms per megabyte the first time.
pub fn sha256(len: u64) -> String {
    static KNOWN: LazyLock<Mutex<HashMap<u64, String>>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sum) = known().get(&len) {
        return sum.clone();
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while at < len {
        let n = buffer.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        fill(at, &mut buffer[..n]);
        hash.update(&buffer[..n]);
        at += n as u64;
    }
    let sum = HEXLOWER.encode(&hash.finalize());
    known().insert(len, sum.clone());
    sum
}

/// Checks a body as it arrives, in pieces of any size.
#[derive(Debug, Default)]
pub struct Verifier {
    at: u64,
    expected: Vec<u8>,
}

/// A body that is not the one that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body differs at byte {at}")]
pub struct Mismatch {
    /// The first wrong byte.
    pub at: u64,
}

impl Verifier {
    /// At the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compares the next piece.
    ///
    /// # Errors
    /// Names the first byte that is wrong.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), Mismatch> {
        self.expected.resize(piece.len(), 0);
        fill(self.at, &mut self.expected);
        if let Some(i) = piece.iter().zip(&self.expected).position(|(a, b)| a != b) {
            return Err(Mismatch { at: self.at + i as u64 });
        }
        self.at += piece.len() as u64;
        Ok(())
    }

    /// How many bytes were right so far.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }
}

/// Whether this is the whole body of its length.
pub fn verify(body: &[u8]) -> Result<(), Mismatch> {
    Verifier::new().update(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(len: usize) -> Vec<u8> {
        let mut body = vec![0; len];
        fill(0, &mut body);
        body
    }

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let whole = body(1000);
        for cut in [1, 7, 8, 9, 500, 999] {
            let mut parts = vec![0; 1000];
            let (a, b) = parts.split_at_mut(cut);
            fill(0, a);
            fill(cut as u64, b);
            assert_eq!(parts, whole, "{cut}");
        }
    }

    #[test]
    fn bytes_look_random() {
        let mut counts = [0u32; 256];
        body(1 << 20).iter().for_each(|b| counts[usize::from(*b)] += 1);
        assert!(counts.iter().all(|n| (3700..4500).contains(n)), "{counts:?}"); // 4096 expected, sigma 64
    }

    #[test]
    fn checksum_is_that_of_the_bytes_and_stays_the_same() {
        let direct = HEXLOWER.encode(&Sha256::digest(body(100_001)));
        assert_eq!(sha256(100_001), direct);
        assert_eq!(sha256(100_001), direct);
        assert_eq!(sha256(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn verifier_names_the_wrong_byte() {
        let mut wrong = body(300);
        assert_eq!(verify(&wrong), Ok(()));
        wrong[257] ^= 1;
        let mut verifier = Verifier::new();
        verifier.update(&wrong[..100]).unwrap();
        assert_eq!(verifier.update(&wrong[100..]), Err(Mismatch { at: 257 }));
        assert_eq!(verifier.len(), 100);
    }
}
