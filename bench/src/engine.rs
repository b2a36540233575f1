//! The egress engine alone, without Tor: how far from a bare copy loop is it?

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eebt_bridge::egress::{Egress, Families};
use eebt_bridge::limits::{Limits, Rate, Throttle, TokenBucket};
use eebt_bridge::resolve::Resolver;
use eebt_bridge::status::Status;
use eebt_proto::{ExitPolicy, PortSet, Surroundings, Target};
use nix::time::{ClockId, clock_gettime};

use crate::figures::Unit;
use crate::report::{Report, Sample};

/// What is measured here.
pub const ENGINE: &str = "egress engine";
/// What it is held against.
pub const BARE: &str = "bare tokio copy";

/// Bytes moved for one sample.
const BYTES: usize = 2_000_000_000;

/// An exit bridge with no relays around it.
struct Nobody;

impl Surroundings for Nobody {
    fn is_own(&self, _ip: IpAddr) -> bool {
        false
    }

    fn is_relay(&self, _addr: SocketAddr) -> bool {
        false
    }
}

/// Measures the engine. Blocks.
pub fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..rounds {
        let mut note = |figure: &str, path: &str, unit: Unit, value: f64| {
            let (figure, path) = (figure.to_owned(), path.to_owned());
            report.add(Sample { figure, path, latency_ms: 0.0, unit, value });
        };
        note("policy_decisions", ENGINE, Unit::PerSecond, policy_decisions());
        for (path, bare) in [(BARE, true), (ENGINE, false)] {
            note("engine_bytes_per_cpu_second", path, Unit::BytesPerSecond, bytes_per_cpu_second(bare)?);
            note("engine_streams", path, Unit::PerSecond, streams_per_second(bare)?);
        }
    }
    Ok(())
}

fn policy() -> ExitPolicy {
    // Loopback stands for the Internet here.
    let lifted = vec![IpAddr::from(Ipv4Addr::LOCALHOST).into()];
    ExitPolicy {
        ports: "1-65535".parse::<PortSet>().unwrap_or_else(|_| PortSet::web()),
        lifted,
        ..ExitPolicy::default()
    }
}

/// Decisions in a second, over addresses of all kinds.
fn policy_decisions() -> f64 {
    let policy = policy();
    let (start, mut decided, mut let_out) = (Instant::now(), 0u32, 0u32);
    while start.elapsed() < Duration::from_millis(500) {
        for _ in 0..10_000 {
            decided = decided.wrapping_add(1);
            // Spread over all of IPv4 (Knuth's multiplicative hash).
            let ip = Ipv4Addr::from_bits(decided.wrapping_mul(2_654_435_761));
            let addr = SocketAddr::new(ip.into(), 443);
            let_out += u32::from(std::hint::black_box(policy.check(addr, &Nobody)).is_ok());
        }
    }
    std::hint::black_box(let_out);
    f64::from(decided) / start.elapsed().as_secs_f64()
}

fn engine() -> anyhow::Result<Egress> {
    let plenty = Rate { per_second: 1e12, burst: 1e12 };
    let limits = Limits { bytes: plenty, total_bytes: plenty, ..Limits::default() };
    // Names are not looked up here, so no name server is asked.
    let resolver = Resolver::new(&[(Ipv4Addr::LOCALHOST, 53).into()])?;
    let throttle = Arc::new(Throttle::new(limits.total_bytes, Instant::now()));
    Ok(Egress::new(policy(), Arc::new(Nobody), resolver, None, limits, throttle, Arc::<Status>::default()))
}

/// Copies both ways between two connections, with the engine or without it.
async fn copy(
    engine: &Egress,
    client: tokio::net::TcpStream,
    origin: SocketAddr,
    bare: bool,
) -> anyhow::Result<()> {
    let target = Target::new(&origin.ip().to_string(), origin.port())?;
    if bare {
        let mut client = client;
        let mut tcp = tokio::net::TcpStream::connect(origin).await?;
        tcp.set_nodelay(true)?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut tcp, 1 << 14, 1 << 14).await?;
        return Ok(());
    }
    let tcp = engine.connect(&target, Families { v4: true, v6: true, prefer_v6: false }).await?;
    let budget = Mutex::new(TokenBucket::new(engine.limits().bytes, Instant::now()));
    engine.copy(client, tcp, &budget).await;
    Ok(())
}

/// Runs `work` on a thread of its own, and returns what it says with the processor time it took.
fn on_own_thread<T: Send>(
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<(T, Duration)> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let done = runtime.block_on(work())?;
            let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
            anyhow::Ok((done, Duration::from(used)))
        });
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
}

/// A download from an origin through the copying thread to a client; the ends have threads of their own.
#[allow(clippy::cast_precision_loss)]
fn bytes_per_cpu_second(bare: bool) -> anyhow::Result<f64> {
    let (origin, front) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (origin_addr, front_addr) = (origin.local_addr()?, front.local_addr()?);
    let source = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = origin.accept()?;
        let piece = vec![7; 1 << 18];
        let mut left = BYTES;
        while left > 0 {
            let n = left.min(piece.len());
            stream.write_all(&piece[..n])?;
            left -= n;
        }
        Ok(())
    });
    let sink = std::thread::spawn(move || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(front_addr)?;
        let (mut buffer, mut got) = (vec![0; 1 << 18], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(got),
                n => got += n,
            }
        }
    });
    front.set_nonblocking(true)?;
    let ((), used) = on_own_thread(async move || {
        let engine = engine()?;
        let (client, _) = tokio::net::TcpListener::from_std(front)?.accept().await?;
        copy(&engine, client, origin_addr, bare).await
    })?;
    source.join().map_err(|_| anyhow::anyhow!("the source panicked"))??;
    let got = sink.join().map_err(|_| anyhow::anyhow!("the sink panicked"))??;
    anyhow::ensure!(got == BYTES, "{got} bytes arrived");
    Ok(got as f64 / used.as_secs_f64())
}

/// Streams in a second that are opened, carry one small answer, and end.
#[allow(clippy::cast_precision_loss)]
fn streams_per_second(bare: bool) -> anyhow::Result<f64> {
    const STREAMS: usize = 2000;
    let (origin, front) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (origin_addr, front_addr) = (origin.local_addr()?, front.local_addr()?);
    let source = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..STREAMS {
            origin.accept()?.0.write_all(b"hello")?;
        }
        Ok(())
    });
    let sink = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..STREAMS {
            let mut stream = TcpStream::connect(front_addr)?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got)?;
            if got != b"hello" {
                return Err(std::io::Error::other("wrong bytes"));
            }
        }
        Ok(())
    });
    front.set_nonblocking(true)?;
    let ((), used) = on_own_thread(async move || {
        let engine = engine()?;
        let front = tokio::net::TcpListener::from_std(front)?;
        for _ in 0..STREAMS {
            let (client, _) = front.accept().await?;
            copy(&engine, client, origin_addr, bare).await?;
        }
        Ok(())
    })?;
    source.join().map_err(|_| anyhow::anyhow!("the source panicked"))??;
    sink.join().map_err(|_| anyhow::anyhow!("the sink panicked"))??;
    Ok(STREAMS as f64 / used.as_secs_f64())
}
