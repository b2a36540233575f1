//! The exit-bridge directory alone, without Tor: a real process on a SQLite file that is full of exit
//! bridges, and clients that ask it over loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use eebt_proto::directory::{Ask, EXIT_BRIDGES, HandOut, Speed, Standing, Wishes};
use eebt_proto::ticket::TicketKind;
use eebt_proto::{BridgeDescriptor, BridgeLine, CircuitReach, OnionReach, PortSet, Reach, Ticket};
use futures::future::try_join_all;
use hebtor_directory::config::Tickets;
use hebtor_directory::door::{ASKS, day};
use hebtor_directory::store::sqlite::Sqlite;
use hebtor_directory::store::{Partition, Store as _, Test};
use tempfile::TempDir;
use tests::{Running, binary};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::figures::{Plan, Unit};
use crate::process::{Cost, memory};
use crate::report::{Report, Sample};

/// What is measured here.
pub const DIRECTORY: &str = "exit-bridge directory";

/// Connections at once, each with one request after the other.
const CONNECTIONS: usize = 8;

/// Where exit bridges are.
const COUNTRIES: [&str; 8] = ["DE", "FI", "FR", "NL", "PL", "RO", "SE", "US"];

/// Measures the directory.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let folder = folder()?;
    let file = folder.path().join("directory.db");
    eprintln!("   {} exit bridges register", plan.exit_bridges);
    fill(&file, plan.exit_bridges).await?;
    for round in 0..plan.rounds {
        let mut note = |figure: &str, unit: Unit, value: f64| {
            let (figure, path) = (figure.to_owned(), DIRECTORY.to_owned());
            report.add(Sample { figure, path, latency_ms: 0.0, unit, value });
        };
        // Tickets that cost nothing: hand-outs alone.
        let start = Instant::now();
        let directory = Directory::start(folder.path(), &file, 8).await?;
        note("directory_start", Unit::Milliseconds, start.elapsed().as_secs_f64() * 1000.0);
        // What starts the same on an empty file is in the memory as well.
        directory.settle().await;
        note("directory_memory_full", Unit::Kilobytes, directory.memory()?);
        let tickets = plan.asks / ASKS.burst as usize;
        let asked = directory.ask(round, tickets, ASKS.burst as usize).await?;
        note("hand_outs", Unit::PerSecond, asked.per_second);
        note("hand_outs_per_cpu_second", Unit::PerSecond, asked.per_cpu_second);
        note("hand_out_p50", Unit::Milliseconds, asked.p50);
        note("hand_out_p99", Unit::Milliseconds, asked.p99);
        note("directory_memory_busy", Unit::Kilobytes, directory.memory()?);
        drop(directory);
        // Tickets whose proofs are as slow as they are by default, each seen for the first time.
        let directory = Directory::start(folder.path(), &file, Tickets::default().memory_kib).await?;
        directory.settle().await;
        let asked = directory.ask(round, plan.asks.div_ceil(50), 1).await?;
        note("new_tickets_per_cpu_second", Unit::PerSecond, asked.per_cpu_second);
        note("new_ticket_p50", Unit::Milliseconds, asked.p50);
    }
    Ok(())
}

/// A folder in memory where there is one: filling the file waits for the disk 200,000 times otherwise.
fn folder() -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("bench-directory-").tempdir_in("/dev/shm");
    folder.or_else(|_| tempfile::tempdir()).context("cannot create a folder")
}

/// Registers exit bridges that have all passed their tests.
async fn fill(file: &Path, exit_bridges: u32) -> anyhow::Result<()> {
    let store = Sqlite::open(file)?;
    let later = SystemTime::now() + Duration::from_secs(2 * 3600);
    for n in 0..exit_bridges {
        let now = SystemTime::now();
        let new = descriptor(n, now, later);
        store.put(&new, Partition::Open, now).await?;
        let test = Test {
            standing: Standing::Serving,
            live_until: later,
            egress: Some(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()),
            country: new.country,
            latency: Some(Duration::from_millis(300)),
            speed: [Speed::Slow, Speed::Medium, Speed::Fast][n as usize % 3],
            failures: 0,
            next: later,
        };
        store.note(new.identity(), &test, now).await?;
    }
    Ok(())
}

fn descriptor(n: u32, now: SystemTime, later: SystemTime) -> BridgeDescriptor {
    let mut identity = [7; 32];
    identity[..4].copy_from_slice(&n.to_be_bytes());
    let reach = match n % 2 {
        0 => Reach::Onion(OnionReach { service: identity }),
        _ => Reach::Circuit(CircuitReach {
            addresses: vec![SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(), 44321)],
            ed25519: identity,
            rsa: [2; 20],
            ntor: identity,
            protocols: eebt_proto::reach::DEFAULT_PROTOCOLS.into(),
        }),
    };
    BridgeDescriptor {
        line: BridgeLine { reach, ports: PortSet::web(), expires: Some(later) },
        published: now,
        expires: later,
        country: COUNTRIES[n as usize % COUNTRIES.len()].parse().ok(),
        capacity: 256,
        software: "bench".into(),
    }
}

/// A running directory.
struct Directory {
    process: Running,
    addr: SocketAddr,
}

/// What asking it showed.
struct Asked {
    per_second: f64,
    /// Of the server's time on a processor.
    per_cpu_second: f64,
    p50: f64,
    p99: f64,
}

impl Directory {
    /// Starts one whose tickets take no search, with proofs of so much memory.
    async fn start(folder: &Path, file: &Path, memory_kib: u32) -> anyhow::Result<Self> {
        let addr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(binary("hebtor-directory"));
        command.arg("run");
        for setting in [
            format!("store=sqlite:{}", file.display()),
            "onion=false".into(),
            // Of a service that is not there.
            format!("address={}", OnionReach { service: [9; 32] }),
            format!("listen={addr}"),
            format!("tickets.memory_kib={memory_kib}"),
            "tickets.bits=0".into(),
        ] {
            command.args(["--set", &setting]);
        }
        let mut process = Running::start(command, folder)?;
        process.wait_for("ready", |stdout, _| stdout.contains(".onion").then_some(())).await?;
        Ok(Self { process, addr })
    }

    /// Waits until it does nothing but wait.
    async fn settle(&self) {
        let mut before = self.cost().cpu;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.cost().cpu;
            if now - before < 0.1 {
                return;
            }
            before = now;
        }
    }

    fn cost(&self) -> Cost {
        Cost::of(&self.process.pid().into_iter().collect::<Vec<_>>())
    }

    fn memory(&self) -> anyhow::Result<f64> {
        let (now, _peak) = self.process.pid().and_then(memory).context("the directory has ended")?;
        Ok(now)
    }

    /// Asks with so many new tickets, so many times with each.
    #[allow(clippy::cast_precision_loss)] // thousands
    async fn ask(&self, round: usize, tickets: usize, times: usize) -> anyhow::Result<Asked> {
        let today = day(SystemTime::now());
        let (before, start) = (self.cost(), Instant::now());
        let clients = (0..CONNECTIONS).map(|client| async move {
            let mut stream = TcpStream::connect(self.addr).await?;
            stream.set_nodelay(true)?;
            let mut took = Vec::new();
            for n in (client..tickets).step_by(CONNECTIONS) {
                let mut key = [u8::try_from(round)?; 32];
                key[..8].copy_from_slice(&u64::try_from(n)?.to_be_bytes());
                let ticket = Ticket { kind: TicketKind::Argon2id, key, day: today, nonce: 0 };
                // One of four asks for a country.
                let country = (n % 4 == 0).then(|| COUNTRIES[n / 4 % COUNTRIES.len()].parse()).transpose()?;
                let ask = Ask { ticket, wishes: Wishes { country, ..Wishes::default() } };
                let request = request(&ask)?;
                for _ in 0..times {
                    let start = Instant::now();
                    hand_out(&mut stream, &request).await?;
                    took.push(start.elapsed().as_secs_f64() * 1000.0);
                }
            }
            anyhow::Ok(took)
        });
        let took = try_join_all(clients).await?.concat();
        let (wall, used) = (start.elapsed().as_secs_f64(), self.cost().since(before));
        let quantile = |q| crate::stats::quantile(&took, q).unwrap_or_default();
        Ok(Asked {
            per_second: took.len() as f64 / wall,
            per_cpu_second: took.len() as f64 / used.cpu,
            p50: quantile(0.5),
            p99: quantile(0.99),
        })
    }
}

fn request(ask: &Ask) -> anyhow::Result<Vec<u8>> {
    let body = serde_json::to_vec(ask)?;
    let head = format!("POST {EXIT_BRIDGES} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    Ok([head.as_bytes(), &body].concat())
}

/// Asks once on a connection that is kept. Three exit bridges have to come.
async fn hand_out(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(2048);
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the directory closed the connection");
        let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
        ensure!(
            head.starts_with("http/1.1 200"),
            "the directory answered: {}",
            String::from_utf8_lossy(&answer)
        );
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.context("no length")?.parse()?;
        while answer.len() < end + 4 + length {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the directory closed the connection");
        }
        let given: HandOut = serde_json::from_slice(&answer[end + 4..])?;
        ensure!(given.exit_bridges.len() == 3, "{} exit bridges", given.exit_bridges.len());
        return Ok(());
    }
}
