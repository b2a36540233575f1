//! Consensus parameters in the form that circuits want them (tor-spec proposal 324, param-spec).

use tor_netdir::params::NetParameters;
use tor_proto::ccparams::{
    CongestionWindowParamsBuilder, FixedWindowParamsBuilder, RoundTripEstimatorParamsBuilder,
    VegasParamsBuilder,
};
use tor_proto::relay::{CircNetParameters, CongestionControlNetParams};
use tor_proto::{CellCount, FlowCtrlParameters};
use tor_units::{BoundedInt32, Percentage};

/// Parameters of the consensus that are no numbers a circuit can have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ParamsError(String);

/// The last hop's parameters, from those of a consensus.
///
/// # Errors
/// A value that is out of all range.
pub(crate) fn circuit_params(from: &NetParameters) -> Result<CircNetParameters, ParamsError> {
    fn bad(error: impl std::fmt::Display) -> ParamsError {
        ParamsError(error.to_string())
    }
    fn percent<const L: i32, const H: i32>(from: Percentage<BoundedInt32<L, H>>) -> Percentage<u32> {
        Percentage::new(u32::try_from(from.as_percent().get()).unwrap_or_default())
    }
    fn window<T: TryFrom<i32>>(cells: i32) -> Result<T, ParamsError> {
        T::try_from(cells).map_err(|_| ParamsError(format!("circwindow {cells}")))
    }
    let cells_in_queue = (
        from.cc_vegas_alpha_exit.into(),
        from.cc_vegas_beta_exit.into(),
        from.cc_vegas_delta_exit.into(),
        from.cc_vegas_gamma_exit.into(),
        from.cc_vegas_sscap_exit.into(),
    );
    let vegas_exit = VegasParamsBuilder::default()
        .cell_in_queue_params(cells_in_queue.into())
        .ss_cwnd_max(from.cc_ss_max.into())
        .cwnd_full_gap(from.cc_cwnd_full_gap.into())
        .cwnd_full_min_pct(percent(from.cc_cwnd_full_minpct))
        .cwnd_full_per_cwnd(from.cc_cwnd_full_per_cwnd.into())
        .build()
        .map_err(bad)?;
    let fixed_window = FixedWindowParamsBuilder::default()
        .circ_window_start(window(from.circuit_window.get())?)
        .circ_window_min(window(from.circuit_window.lower())?)
        .circ_window_max(window(from.circuit_window.upper())?)
        .build()
        .map_err(bad)?;
    let cwnd = CongestionWindowParamsBuilder::default()
        .cwnd_init(from.cc_cwnd_init.into())
        .cwnd_inc_pct_ss(percent(from.cc_cwnd_inc_pct_ss))
        .cwnd_inc(from.cc_cwnd_inc.into())
        .cwnd_inc_rate(from.cc_cwnd_inc_rate.into())
        .cwnd_min(from.cc_cwnd_min.into())
        .cwnd_max(from.cc_cwnd_max.into())
        .sendme_inc(from.cc_sendme_inc.into())
        .build()
        .map_err(bad)?;
    let rtt = RoundTripEstimatorParamsBuilder::default()
        .ewma_cwnd_pct(percent(from.cc_ewma_cwnd_pct))
        .ewma_max(from.cc_ewma_max.into())
        .ewma_ss_max(from.cc_ewma_ss.into())
        .rtt_reset_pct(percent(from.cc_rtt_reset_pct))
        .build()
        .map_err(bad)?;
    let flow_ctrl = FlowCtrlParameters {
        cc_xoff_client: CellCount::new(from.cc_xoff_client.get_u32()),
        cc_xoff_exit: CellCount::new(from.cc_xoff_exit.get_u32()),
        cc_xon_rate: CellCount::new(from.cc_xon_rate.get_u32()),
        cc_xon_change_pct: from.cc_xon_change_pct.get_u32(),
        cc_xon_ewma_cnt: from.cc_xon_ewma_cnt.get_u32(),
    };
    Ok(CircNetParameters {
        cc: CongestionControlNetParams { fixed_window, vegas_exit, cwnd, rtt, flow_ctrl },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_parameters_are_usable() {
        assert!(circuit_params(&NetParameters::default()).is_ok());
    }
}
