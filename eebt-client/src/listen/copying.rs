//! Copies between a program and a stream of Tor's, once it is clear which one.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eebt_tor::{PumpError, pump};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::io::InspectReader;

use crate::connect::{Connector, Group, Opened};
use crate::visits::Visit;

/// How long an optimistic stream may stay unconnected before its circuit is given up: well above the
/// time that an exit bridge gives a target to answer.
const UNCONNECTED: Duration = Duration::from_secs(45);

/// How long nothing moves on a stream before it counts as quiet.
const QUIET: Duration = Duration::from_secs(1);

/// A stream to copy, and what is known of it.
pub(super) struct Copying {
    pub(super) tcp: TcpStream,
    /// What the program sent before it had an answer.
    pub(super) early_data: Vec<u8>,
    pub(super) opened: Opened,
    pub(super) group: Group,
    /// The target, if it is one that does not turn Tor away, as far as is known.
    pub(super) on_tor: Option<(String, u16)>,
    pub(super) visit: Visit,
}

impl Copying {
    /// Finds out whether it stays on Tor.
    pub(super) async fn settle(
        self: Box<Self>,
        target: (String, u16),
        connector: &Connector,
    ) -> std::io::Result<Box<Self>> {
        let Self { mut tcp, early_data, opened, group, mut visit, .. } = *self;
        let (host, port) = (target.0.as_str(), target.1);
        let settled = {
            let mut program = InspectReader::new(&mut tcp, |bytes| visit.up(bytes.len()));
            tokio::select! {
                settled = connector.settle(&group, host, port, &mut program, opened, early_data) => Some(settled?),
                () = visit.cut() => None,
            }
        };
        let Some((settled, lost)) = settled else {
            tcp.set_zero_linger()?;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        };
        if let Some((id, _)) = &settled.exit_bridge {
            visit.goes(connector.way(host, Some(*id)));
        }
        if lost {
            visit.lost();
        }
        visit.down(settled.got.len());
        tcp.write_all(&settled.got).await?;
        if let Some(error) = settled.broke {
            tcp.set_zero_linger()?;
            return Err(error);
        }
        let on_tor = settled.exit_bridge.is_none().then_some(target);
        let opened = Opened { stream: settled.way, circuit: settled.exit_bridge, undecided: false };
        Ok(Box::new(Self { tcp, early_data: Vec::new(), opened, group, on_tor, visit }))
    }

    /// Copies both ways. Tor has no half-closed streams: the end of either direction is the end of both.
    /// A stream over Tor ends once it is quiet, when its target turns out to turn Tor away: programs keep
    /// streams for their next request, which shall go to an exit bridge.
    /// A stream that breaks is reset towards the program, so that half a download never looks whole.
    pub(super) async fn run(self: Box<Self>, connector: &Connector) -> std::io::Result<()> {
        let Self { mut tcp, early_data, opened, group, on_tor, visit } = *self;
        let Opened { stream, circuit, .. } = opened;
        let moved = AtomicBool::new(false);
        let ctrl = stream.client_stream_ctrl().cloned();
        let (mut tor_read, mut tor_write) = stream.split();
        let result = {
            let (mut program_read, mut program_write) = tcp.split();
            let up = async {
                let sent = async {
                    let early = tokio::io::AsyncWriteExt::write_all(&mut tor_write, &early_data).await;
                    drop(early_data);
                    early.map_err(PumpError::Writer)?;
                    let count = |bytes| {
                        visit.up(bytes);
                        moved.store(true, Ordering::Relaxed);
                        Duration::ZERO
                    };
                    pump(&mut program_read, &mut tor_write, count).await
                };
                // When the other end takes no more, what it said before that still has to come down.
                match sent.await {
                    Err(PumpError::Writer(_)) => std::future::pending().await,
                    done => Ok(done?),
                }
            };
            let answered = AtomicBool::new(false);
            let down = pump(&mut tor_read, &mut program_write, |bytes| {
                visit.down(bytes);
                moved.store(true, Ordering::Relaxed);
                if let (Some((id, circuit)), false) = (&circuit, answered.swap(true, Ordering::Relaxed)) {
                    connector.note_answer(*id, circuit);
                }
                Duration::ZERO
            });
            let unconnected = async {
                tokio::time::sleep(UNCONNECTED).await;
                match (&circuit, &ctrl) {
                    (Some((id, circuit)), Some(ctrl)) if !ctrl.is_connected() => {
                        connector.note_silence(&group, *id, circuit).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            let left = async {
                let Some((host, port)) = &on_tor else { return std::future::pending().await };
                connector.verdicts().until_refused(&group, host, *port).await;
                while moved.swap(false, Ordering::Relaxed) {
                    tokio::time::sleep(QUIET).await;
                }
            };
            // By reference, for select! would keep a second place for each.
            let (mut up, mut down) = (pin!(up), pin!(down));
            let (mut unconnected, mut left) = (pin!(unconnected), pin!(left));
            tokio::select! {
                result = &mut up => result,
                result = &mut down => {
                    let result = result.map_err(std::io::Error::from);
                    if let (Err(error), Some((id, circuit))) = (&result, &circuit) {
                        let answered = answered.load(Ordering::Relaxed);
                        if connector.note_break(&group, *id, circuit, error, answered).await {
                            visit.lost();
                        }
                    }
                    result
                }
                () = &mut unconnected => Err(std::io::ErrorKind::TimedOut.into()),
                () = &mut left => Ok(()),
                () = visit.cut() => Err(std::io::ErrorKind::ConnectionAborted.into()),
            }
        };
        if result.is_err() {
            tcp.set_zero_linger()?;
        }
        result
    }
}
