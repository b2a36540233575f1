//! Mode `auto`: through Tor first, and again through an exit bridge when the origin turns Tor away.
//!
//! The program notices nothing but a delay, since what it said first is said again. Nothing is said twice
//! that could have had an effect: only what never reached the origin, and what [`may_repeat`].

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};
use tor_cell::relaycell::msg::EndReason;
use tor_proto::client::stream::DataStream;

use crate::blocked::{Answer, MAX_LOOKED_AT, Reason, judge, may_repeat};

/// Most bytes of a program that are kept to be said again. Who says more before an answer stays on Tor.
const MAX_REPEATED: usize = 64 * 1024;

/// How long the rest of what may be a block page is waited for.
const REST_OF_PAGE: Duration = Duration::from_secs(1);

/// A stream to an origin.
pub(crate) trait Way: AsyncRead + AsyncWrite + Unpin {
    /// Whether the origin has taken the connection.
    fn is_connected(&self) -> bool;
}

impl Way for DataStream {
    fn is_connected(&self) -> bool {
        self.client_stream_ctrl().is_some_and(|ctrl| ctrl.is_connected())
    }
}

/// How the exchange goes on.
pub(crate) struct Settled<W, X> {
    /// The stream that it goes on with; of Tor without, of an exit bridge with what comes with that.
    pub(crate) way: W,
    /// What came with the exit bridge's stream.
    pub(crate) exit_bridge: Option<X>,
    /// What the origin has said, for the program.
    pub(crate) got: Vec<u8>,
    /// The stream broke behind that.
    pub(crate) broke: Option<io::Error>,
    /// The origin turned Tor away, and answered the exit bridge.
    pub(crate) blocked: Option<Reason>,
    /// An exit bridge's stream that broke before the origin said anything.
    pub(crate) failed: Option<(X, io::Error)>,
    /// The stream over Tor that an exit bridge's overtook; see [`is_silent`].
    pub(crate) overtaken: Option<W>,
}

impl<W: Way, X> Settled<W, X> {
    fn tor(way: W, got: Vec<u8>, broke: Option<io::Error>) -> Self {
        Self { way, exit_bridge: None, got, broke, blocked: None, failed: None, overtaken: None }
    }

    /// An exit bridge's, because of what Tor met; nothing was learned if the exit bridge met the same, or nothing.
    fn because(self, reason: Option<Reason>) -> Self {
        Self { blocked: reason.filter(|_| self.blocked.is_none() && !self.got.is_empty()), ..self }
    }

    /// Tor's after all, behind an exit bridge that did no better. What the program said meanwhile is said
    /// here too; where that could have had an effect, the exchange ends with what there is.
    async fn tor_after_all(
        mut tor: W,
        said_since: (&[u8], usize),
        got: Vec<u8>,
        broke: Option<io::Error>,
        failed: Option<(X, io::Error)>,
    ) -> Self {
        let (sent, told) = said_since;
        let broke = match broke {
            None if told < sent.len() && !may_repeat(sent) => Some(io::ErrorKind::ConnectionReset.into()),
            None => async {
                tor.write_all(&sent[told..]).await?;
                tor.flush().await
            }
            .await
            .err(),
            broke => broke,
        };
        Self { failed, ..Self::tor(tor, got, broke) }
    }
}

/// The beginning of an exchange.
enum First {
    /// The origin answers, and may have ended or broken off behind this.
    Open(Vec<u8>, Option<io::Error>),
    /// It says that it does not want us.
    Blocked(Reason, Vec<u8>),
    /// It ended or broke off before it said anything.
    Failed(io::Error),
    /// It said nothing for too long, and may be asked again.
    Silent,
}

/// Carries the beginning of an exchange, and decides by it whether the origin answers Tor. `sent` is what
/// the program has said already, and gets what it says meanwhile; `open` opens a stream through an exit bridge, when there is need of one.
/// After `patience` without a word an exit bridge is asked beside Tor, and whoever answers first is taken.
///
/// # Errors
/// The program's side broke.
pub(crate) async fn settle<W: Way, X>(
    program: &mut (impl AsyncRead + Unpin),
    mut tor: W,
    sent: &mut Vec<u8>,
    patience: Duration,
    open: impl Future<Output = Option<(W, X)>>,
) -> io::Result<Settled<W, X>> {
    let (reason, got, broke) = match first(program, &mut tor, sent, Some(patience)).await? {
        First::Open(got, broke) => return Ok(Settled::tor(tor, got, broke)),
        First::Silent => return either(program, tor, sent, open).await,
        First::Blocked(reason, got) if may_repeat(sent) => (Some(reason), got, None),
        First::Blocked(_, got) => return Ok(Settled::tor(tor, got, None)),
        First::Failed(error) => match meaning(&error) {
            Failure::Everywhere => return Ok(Settled::tor(tor, Vec::new(), Some(error))),
            // It may have heard what must not be said twice.
            failure if (failure.may_have_reached() || tor.is_connected()) && !may_repeat(sent) => {
                return Ok(Settled::tor(tor, Vec::new(), Some(error)));
            }
            failure => (failure.reason().filter(|r| fits(*r, &tor)), Vec::new(), Some(error)),
        },
    };
    let told = sent.len();
    match again(program, sent, open).await? {
        Ok(settled) => Ok(settled.because(reason)),
        Err(failed) => Ok(Settled::tor_after_all(tor, (sent, told), got, broke, failed).await),
    }
}

/// Whether an origin that an exit bridge reached sooner is silent towards Tor: it says nothing for as long
/// again, or ends the stream. One that is only slow is not.
pub(crate) async fn is_silent(mut overtaken: impl Way, patience: Duration) -> bool {
    match tokio::time::timeout(patience, overtaken.read(&mut [0])).await {
        Err(_) => true,
        Ok(Ok(0)) => true,
        Ok(Ok(_)) => false,
        Ok(Err(error)) => meaning(&error).reason().is_some(),
    }
}

/// How the exchange goes on through an exit bridge; without one, the stream that failed, if there was one.
type Again<W, X> = Result<Settled<W, X>, Option<(X, io::Error)>>;

/// The exchange once more, through an exit bridge. `blocked` when the origin does not want that one either.
async fn again<W: Way, X>(
    program: &mut (impl AsyncRead + Unpin),
    sent: &mut Vec<u8>,
    open: impl Future<Output = Option<(W, X)>>,
) -> io::Result<Again<W, X>> {
    let Some((mut way, bridge)) = open.await else { return Ok(Err(None)) };
    let (got, broke, blocked) = match first(program, &mut way, sent, None).await? {
        First::Open(got, broke) => (got, broke, None),
        First::Blocked(reason, got) => (got, None, Some(reason)),
        First::Failed(error) => return Ok(Err(Some((bridge, error)))),
        First::Silent => return Ok(Err(None)), // it has all the time
    };
    let exit_bridge = Some(bridge);
    Ok(Ok(Settled { way, exit_bridge, got, broke, blocked, failed: None, overtaken: None }))
}

/// The exchange through an exit bridge as well, where Tor has said nothing yet: whoever answers first.
async fn either<W: Way, X>(
    program: &mut (impl AsyncRead + Unpin),
    mut tor: W,
    sent: &mut Vec<u8>,
    open: impl Future<Output = Option<(W, X)>>,
) -> io::Result<Settled<W, X>> {
    let told = sent.len();
    let mut got = Vec::with_capacity(MAX_LOOKED_AT);
    let mut by_exit_bridge = Box::pin(again(program, sent, open));
    let (broke, failed) = tokio::select! {
        biased;
        read = tor.read_buf(&mut got) => match read {
            Ok(1..) => (None, None),
            // It never answered: all depends on the exit bridge.
            ended => {
                let error = ended.err().unwrap_or(io::ErrorKind::UnexpectedEof.into());
                match by_exit_bridge.as_mut().await? {
                    Ok(settled) => {
                        return Ok(settled.because(meaning(&error).reason().filter(|r| fits(*r, &tor))));
                    }
                    Err(failed) => (Some(error), failed),
                }
            }
        },
        settled = &mut by_exit_bridge => match settled? {
            Ok(settled) if settled.blocked.is_some() => return Ok(settled.because(None)),
            // The program has gone, or said too much to be said again: nobody overtook anybody.
            Ok(settled) if settled.got.is_empty() => return Ok(settled),
            Ok(settled) => return Ok(Settled { overtaken: Some(tor), ..settled }),
            Err(failed) => (None, failed),
        },
    };
    drop(by_exit_bridge);
    Ok(Settled::tor_after_all(tor, (sent, told), got, broke, failed).await)
}

/// Says `sent`, and carries on until it shows what the answer is.
async fn first(
    program: &mut (impl AsyncRead + Unpin),
    way: &mut impl Way,
    sent: &mut Vec<u8>,
    mut patience: Option<Duration>,
) -> io::Result<First> {
    let mut said = 0;
    let mut got = Vec::new();
    let mut rest_until = None;
    let mut since = Instant::now();
    loop {
        if said < sent.len() {
            // If it breaks here, reading says why.
            let _told_by_reading = way.write_all(&sent[said..]).await;
            let _told_by_reading = way.flush().await;
            (said, since) = (sent.len(), Instant::now());
        }
        if said >= MAX_REPEATED {
            return Ok(First::Open(got, None));
        }
        sent.reserve(4096);
        got.reserve(4096);
        let speaks = !sent.is_empty() || !way.is_connected();
        tokio::select! {
            read = program.read_buf(sent) => {
                if read? == 0 {
                    return Ok(First::Open(got, None));
                }
            }
            read = way.read_buf(&mut got) => {
                let (all, broke) = match read {
                    Ok(0) => (true, None),
                    Ok(_) => (false, None),
                    Err(error) => (true, Some(error)),
                };
                if got.is_empty() {
                    return Ok(First::Failed(broke.unwrap_or(io::ErrorKind::UnexpectedEof.into())));
                }
                match judge(sent, &got, all) {
                    Answer::Open => return Ok(First::Open(got, broke)),
                    Answer::Blocked(reason) => return Ok(First::Blocked(reason, got)),
                    Answer::More => {
                        rest_until.get_or_insert_with(|| Instant::now() + REST_OF_PAGE);
                    }
                }
            }
            () = sleep_until(rest_until.unwrap_or(since)), if rest_until.is_some() => {
                return Ok(match judge(sent, &got, true) {
                    Answer::Blocked(reason) => First::Blocked(reason, got),
                    _ => First::Open(got, None),
                });
            }
            () = sleep_until(since + patience.unwrap_or_default()),
                if patience.is_some() && speaks && got.is_empty() =>
            {
                if may_repeat(sent) {
                    return Ok(First::Silent);
                }
                patience = None;
            }
        }
    }
}

/// What it means that a stream over Tor ended before the origin said anything.
enum Failure {
    /// The origin does not want Tor, it seems.
    Blocked(Reason),
    /// The exit did not do it; another one may.
    Exit,
    /// The circuit is gone, and nobody knows how far it came.
    Circuit,
    /// Any other way would end the same.
    Everywhere,
}

impl Failure {
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::Blocked(reason) => Some(*reason),
            _ => None,
        }
    }

    /// Could the origin have heard something, though nothing said that it was connected?
    fn may_have_reached(&self) -> bool {
        matches!(self, Self::Circuit)
    }
}

/// Whether that may be the reason: who was connected has taken the connection.
fn fits(reason: Reason, tor: &impl Way) -> bool {
    reason != Reason::NotTaken || !tor.is_connected()
}

fn meaning(error: &io::Error) -> Failure {
    use tor_proto::Error::EndReceived;
    match error.get_ref().and_then(|e| e.downcast_ref::<tor_proto::Error>()) {
        Some(EndReceived(reason)) => match *reason {
            EndReason::CONNECTREFUSED => Failure::Blocked(Reason::Refused),
            EndReason::MISC => Failure::Blocked(Reason::NotTaken),
            EndReason::CONNRESET | EndReason::DONE => Failure::Blocked(Reason::Closed),
            EndReason::TIMEOUT => Failure::Blocked(Reason::Silent),
            EndReason::RESOLVEFAILED | EndReason::EXITPOLICY => Failure::Everywhere,
            _ => Failure::Exit,
        },
        Some(_) => Failure::Circuit,
        None if error.kind() == io::ErrorKind::UnexpectedEof => Failure::Blocked(Reason::Closed),
        None => Failure::Circuit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{DuplexStream, ReadBuf, duplex};

    const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    /// What times in these tests are counted in.
    const TICK: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(1);

    /// One end of a pipe; connected, unless said otherwise.
    struct Pipe(DuplexStream, bool);

    impl Way for Pipe {
        fn is_connected(&self) -> bool {
            self.1
        }
    }

    impl AsyncRead for Pipe {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// An origin: a while after it heard something it says something, or ends. What it heard is returned.
    async fn origin(mut end: DuplexStream, after: Duration, says: Option<&[u8]>) -> Vec<u8> {
        let mut heard = Vec::new();
        end.read_buf(&mut heard).await.unwrap();
        tokio::time::sleep(after).await;
        if let Some(says) = says {
            end.write_all(says).await.unwrap_or_default();
        }
        heard
    }

    struct Outcome {
        by_exit_bridge: bool,
        got: Vec<u8>,
        broke: bool,
        blocked: Option<Reason>,
        silent: bool,
        /// What origins heard: over Tor, and through the exit bridge.
        heard: [Vec<u8>; 2],
        took: Duration,
    }

    /// After how many ticks, and what; or the end.
    type Says<'a> = (u32, Option<&'a [u8]>);

    /// A program that sends `sends` to an origin that answers as told, over Tor and through an exit bridge.
    async fn run(sends: &[u8], connected: bool, tor: Says<'_>, exit_bridge: Option<Says<'_>>) -> Outcome {
        let (mut program, mut ours) = duplex(100_000);
        let (tor_near, tor_far) = duplex(100_000);
        let (near, far) = duplex(100_000);
        program.write_all(sends).await.unwrap();
        let start = Instant::now();
        let open = async { exit_bridge.map(|_| (Pipe(near, true), ())) };
        let settling = async {
            let settled =
                settle(&mut ours, Pipe(tor_near, connected), &mut Vec::new(), PATIENCE, open).await.unwrap();
            let took = start.elapsed();
            let silent = match settled.overtaken {
                Some(overtaken) => is_silent(overtaken, PATIENCE).await,
                None => false,
            };
            // The streams end, so that origins do.
            (
                settled.exit_bridge.is_some(),
                settled.got,
                settled.broke.is_some(),
                settled.blocked,
                silent,
                took,
            )
        };
        let of_tor = origin(tor_far, TICK * tor.0, tor.1);
        let of_bridge = async {
            match exit_bridge {
                Some((after, says)) => origin(far, TICK * after, says).await,
                None => Vec::new(),
            }
        };
        let ((by_exit_bridge, got, broke, blocked, silent, took), a, b) =
            tokio::join!(settling, of_tor, of_bridge);
        Outcome { by_exit_bridge, got, broke, blocked, silent, heard: [a, b], took }
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
    const BLOCKED: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\n\r\nTor exit";

    #[tokio::test]
    async fn an_origin_that_answers_stays_on_tor() {
        let out = run(GET, true, (1, Some(OK)), Some((1, Some(OK)))).await;
        assert!(!out.by_exit_bridge && out.blocked.is_none() && out.got == OK);
        assert_eq!(out.heard, [GET.to_vec(), Vec::new()]);
    }

    #[tokio::test]
    async fn a_block_page_and_a_closed_connection_are_asked_for_again() {
        let page = Reason::Page("a page about Tor exits");
        for (says, reason) in [(Some(BLOCKED), page), (None, Reason::Closed)] {
            let out = run(GET, true, (1, says), Some((1, Some(OK)))).await;
            assert!(out.by_exit_bridge && !out.broke && out.got == OK);
            assert_eq!((out.blocked, out.heard), (Some(reason), [GET.to_vec(), GET.to_vec()]));
        }
    }

    #[tokio::test]
    async fn what_could_have_had_an_effect_is_never_sent_twice() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
        let out = run(post, true, (1, None), Some((1, Some(OK)))).await;
        assert!(!out.by_exit_bridge && out.broke && out.heard[1].is_empty());
        let out = run(post, true, (1, Some(BLOCKED)), Some((1, Some(OK)))).await;
        assert!(!out.by_exit_bridge && out.got == BLOCKED && out.heard[1].is_empty());
        // It never got there: no connection.
        let out = run(post, false, (1, None), Some((1, Some(OK)))).await;
        assert!(out.by_exit_bridge && out.heard[1] == post && out.blocked == Some(Reason::Closed));
        // Silence: the origin may be at work.
        let out = run(post, true, (30, Some(OK)), Some((1, Some(OK)))).await;
        assert!(!out.by_exit_bridge && out.got == OK && out.heard[1].is_empty());
    }

    #[tokio::test]
    async fn when_no_exit_bridge_does_better_the_program_gets_what_tor_got() {
        for bridge in [None, Some((1, None))] {
            let out = run(GET, true, (1, Some(BLOCKED)), bridge).await;
            assert!(!out.by_exit_bridge && !out.broke && out.got == BLOCKED && out.blocked.is_none());
            let out = run(GET, true, (1, None), bridge).await;
            assert!(!out.by_exit_bridge && out.broke && out.got.is_empty() && out.blocked.is_none());
        }
        // Exit bridges are turned away as well: nothing is learned of Tor.
        let out = run(GET, true, (1, Some(BLOCKED)), Some((1, Some(BLOCKED)))).await;
        assert!(out.by_exit_bridge && out.got == BLOCKED && out.blocked.is_none());
    }

    #[tokio::test]
    async fn a_slow_origin_is_not_taken_for_one_that_blocks() {
        // It takes 15 s for each answer, whoever asks: Tor was asked first.
        let out = run(GET, true, (15, Some(OK)), Some((15, Some(OK)))).await;
        assert!(!out.by_exit_bridge && out.blocked.is_none() && out.got == OK);
        assert!(out.took >= TICK * 15 && out.took < TICK * 20);
        // It does not answer Tor.
        let out = run(GET, true, (30, None), Some((1, Some(OK)))).await;
        assert!(out.by_exit_bridge && out.silent && out.got == OK);
        assert!(out.took >= TICK * 11 && out.took < TICK * 16);
        // It does, but an exit bridge sooner.
        let out = run(GET, true, (15, Some(OK)), Some((1, Some(OK)))).await;
        assert!(out.by_exit_bridge && !out.silent && out.blocked.is_none());
        // Nor an exit bridge.
        let out = run(GET, true, (40, Some(OK)), Some((1, None))).await;
        assert!(!out.by_exit_bridge && out.blocked.is_none());
    }

    #[tokio::test]
    async fn nothing_is_learned_of_an_origin_when_the_program_goes_first() {
        // Tor refuses or says nothing; through the exit bridge nothing comes either.
        for refuses in [true, false] {
            let (mut program, mut ours) = duplex(1000);
            let ((near, mut tor), (way, _far)) = (duplex(1000), duplex(1000));
            program.write_all(GET).await.unwrap();
            let open = async { Some((Pipe(way, true), ())) };
            let mut sent = Vec::new();
            let settling = settle(&mut ours, Pipe(near, true), &mut sent, PATIENCE, open);
            let going = async {
                tor.read_exact(&mut [0; GET.len()]).await.unwrap();
                let _open = (!refuses).then_some(tor);
                tokio::time::sleep(PATIENCE + TICK * 5).await;
                drop(program);
                tokio::time::sleep(TICK).await;
            };
            let (settled, ()) = tokio::join!(settling, going);
            let settled = settled.unwrap();
            assert!(settled.overtaken.is_none() && settled.blocked.is_none() && settled.got.is_empty());
        }
    }

    #[test]
    fn each_reason_of_a_tor_exit_has_its_meaning() {
        let of = |reason| {
            let error = io::Error::other(tor_proto::Error::EndReceived(reason));
            match meaning(&error) {
                Failure::Blocked(reason) => Some(Ok(reason)),
                Failure::Exit => Some(Err("the exit")),
                Failure::Everywhere => Some(Err("everywhere")),
                Failure::Circuit => None,
            }
        };
        for (reason, means) in [
            (EndReason::CONNECTREFUSED, Ok(Reason::Refused)),
            (EndReason::CONNRESET, Ok(Reason::Closed)),
            (EndReason::DONE, Ok(Reason::Closed)),
            (EndReason::TIMEOUT, Ok(Reason::Silent)),
            (EndReason::RESOLVEFAILED, Err("everywhere")),
            (EndReason::EXITPOLICY, Err("everywhere")),
            (EndReason::MISC, Ok(Reason::NotTaken)),
            (EndReason::DESTROY, Err("the exit")),
            (EndReason::NOROUTE, Err("the exit")),
            (EndReason::HIBERNATING, Err("the exit")),
            (EndReason::INTERNAL, Err("the exit")),
            (EndReason::RESOURCELIMIT, Err("the exit")),
            (EndReason::TORPROTOCOL, Err("the exit")),
            (EndReason::NOTDIRECTORY, Err("the exit")),
            (EndReason::from(0), Err("the exit")),
            (EndReason::from(250), Err("the exit")),
        ] {
            assert_eq!(of(reason), Some(means), "{reason}");
        }
        // What no END says: the stream is over, the circuit is gone.
        let ended = meaning(&io::ErrorKind::UnexpectedEof.into()).reason();
        assert_eq!(ended, Some(Reason::Closed));
        for gone in [io::Error::other(tor_proto::Error::CircuitClosed), io::ErrorKind::BrokenPipe.into()] {
            let failure = meaning(&gone);
            assert!(failure.may_have_reached() && failure.reason().is_none(), "{gone}");
        }
    }

    #[tokio::test]
    async fn a_program_that_waits_is_not_hurried() {
        // Connected, and nothing was said: a browser's spare connection.
        let (_program, mut ours) = duplex(1000);
        let (near, _far) = duplex(1000);
        let open = async { None::<(Pipe, ())> };
        let mut sent = Vec::new();
        let settling = settle(&mut ours, Pipe(near, true), &mut sent, PATIENCE, open);
        assert!(tokio::time::timeout(TICK * 30, settling).await.is_err());
    }
}
