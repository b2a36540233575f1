//! Medians and ratios.

/// The value in the middle; of an even number, the mean of both.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which a share `q` of the values lies, linear between neighbours.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[allow(clippy::cast_precision_loss)] // thousands of samples at most
    let at = q.clamp(0.0, 1.0) * last as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and last
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * at.fract())
}

/// One path held against another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer's.
    pub peer: f64,
    /// Ours over the peer's.
    pub ratio: f64,
    /// Samples of the one that has fewer.
    pub n: usize,
    /// Quartiles of the ratios of samples that were taken one after the other.
    pub spread: [f64; 2],
}

/// Compares samples that were taken in turn.
pub fn compare(ours: &[f64], peer: &[f64]) -> Option<Comparison> {
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(a, b)| a / b).collect();
    let (our_median, peer_median) = (median(ours)?, median(peer)?);
    Some(Comparison {
        ours: our_median,
        peer: peer_median,
        ratio: our_median / peer_median,
        n: ours.len().min(peer.len()),
        spread: [quantile(&ratios, 0.25)?, quantile(&ratios, 0.75)?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
    }

    #[test]
    fn quartiles_are_linear_between_neighbours() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!((quantile(&values, 0.25), quantile(&values, 0.75)), (Some(2.0), Some(4.0)));
        assert_eq!(quantile(&[1.0, 2.0], 0.25), Some(1.25));
    }

    #[test]
    fn comparisons_pair_what_was_taken_in_turn() {
        let compared = compare(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).unwrap();
        assert_eq!((compared.ratio, compared.n, compared.spread), (0.5, 3, [0.5, 0.5]));
    }
}
