//! `hebtor-volunteer`: parse arguments, load the configuration, run, exit code.

use std::fs::{File, TryLockError};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use eebt_page::PlaceError;
use eebt_tor::ConfigError;
use hebtor_volunteer::page::{self, Page};
use hebtor_volunteer::receipt::Receipt;
use hebtor_volunteer::remote::{self, RemoteError};
use hebtor_volunteer::settings::{Settings, SettingsError};
use hebtor_volunteer::sources::fake::FromFile;
use hebtor_volunteer::sources::{self, Source, of_this_machine};
use hebtor_volunteer::tray::{Owner, Tray};
use hebtor_volunteer::{App, Config, engine, health, machine, tray, window};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

/// How much longer than its drain an app may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Lend this home's idle address to people whom web sites turn away because they use Tor.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file (TOML) in place of the usual one, such as ~/.config/hebtor-volunteer/config.toml; see
    /// deploy/hebtor-volunteer.example.toml.
    #[arg(long, global = true, env = "HEBTOR_VOLUNTEER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration, such as --set page=127.0.0.1:8080 (repeatable).
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Args)]
struct Run {
    /// No window and no tray: for a server. The page is there all the same.
    #[arg(long)]
    headless: bool,
    /// No window now: it starts at log-in.
    #[arg(long)]
    hidden: bool,
    /// Facts of the machine from this file, in place of the machine itself; for tests.
    #[arg(long, hide = true, value_name = "FILE")]
    facts: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Open the page of the app that runs.
    Open {
        /// Print its address instead. It is a secret: who has it can switch the app.
        #[arg(long)]
        print: bool,
    },
    /// Say what the app that runs does, and why.
    Status {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Switch it on: it serves when the rules let it.
    On,
    /// Switch it off.
    Off,
    /// Pause it.
    Pause {
        /// For how long.
        #[arg(value_name = "MINUTES", default_value_t = 60)]
        minutes: u32,
    },
    /// Set what the page has forms for: when it rests, how much it may take, what may leave. Without a key, print all.
    Set {
        /// Such as `limits.day_mb=2000`, `rules.battery=false`, `rules.hours=22:00-07:00`, `leave.only=search,news` or `limits.month_mb=none`.
        #[arg(value_name = "KEY=VALUE")]
        pairs: Vec<String>,
    },
    /// Start it at log-in, or no longer.
    Autostart {
        /// Whether.
        #[arg(value_enum)]
        to: OnOff,
    },
    /// Write a statement of when this address was lent, signed by its identity and by the directories that saw it.
    Receipt {
        /// A file that does not exist yet.
        file: PathBuf,
        /// From this day on, such as 2026-11-01 [default: all that is kept].
        #[arg(long, value_name = "DATE")]
        from: Option<Date>,
        /// Up to the end of this day [default: now].
        #[arg(long, value_name = "DATE")]
        until: Option<Date>,
        /// As a PDF to print, with the signed statement attached.
        #[arg(long)]
        pdf: bool,
    },
    /// Check such a statement, anybody's, or a PDF of one: who signed what.
    VerifyReceipt {
        /// The file.
        file: PathBuf,
    },
    /// Write a copy of the identity by which directories know this exit bridge. Keep it safe: who has it can pretend to be you.
    Backup {
        /// A file that does not exist yet.
        file: PathBuf,
    },
    /// Put the identity back from a copy.
    Restore {
        /// The copy.
        file: PathBuf,
    },
    /// End it, and take away all that it left: settings, history, identity, the start at log-in.
    Uninstall {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// The exit bridge itself; the app starts it.
    #[command(hide = true)]
    Engine,
    /// What checks the address; the app starts it.
    #[command(hide = true)]
    CheckAddress,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OnOff {
    On,
    Off,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    eebt_tor::init_log();
    match cli.command {
        Some(Command::Engine) => return engine::run(),
        Some(Command::CheckAddress) => return health::run(),
        _ => {}
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hebtor-volunteer: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let config = Config::load_with(cli.config.as_deref(), &cli.settings)?;
    let state_dir = config.state_folder()?;
    // One thread: it waits most of the time, and the exit bridge is a process of its own.
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio = tokio.context("cannot start the async runtime")?;
    let send = |form: &str, fields: String| tokio.block_on(remote::send(&state_dir, form, &fields));
    match cli.command {
        None if cli.run.headless => return tokio.block_on(serve(config, &state_dir, cli.run, None)),
        None => {
            return tray::on_this_thread(|tray| {
                tokio.block_on(serve(config, &state_dir, cli.run, Some(tray)))
            });
        }
        Some(Command::Open { print: true }) => print(&format!("{}\n", page::find(&state_dir)?)),
        Some(Command::Open { print: false }) => open(&state_dir)?,
        Some(Command::Status { json }) => {
            let status = tokio.block_on(remote::status(&state_dir))?;
            print(&match json {
                true => format!("{}\n", serde_json::to_string(&status)?),
                false => said(&status),
            });
        }
        Some(Command::On) => send("switch", "to=on".into())?,
        Some(Command::Off) => send("switch", "to=off".into())?,
        Some(Command::Pause { minutes }) => send("switch", format!("to=pause&minutes={minutes}"))?,
        Some(Command::Set { pairs }) if pairs.is_empty() => {
            let pairs = Settings::load(&state_dir)?.pairs();
            print(&pairs.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>());
        }
        Some(Command::Set { pairs }) => set(&state_dir, &pairs, send)?,
        Some(Command::Autostart { to }) => {
            machine::start_at_log_in(matches!(to, OnOff::On), config.file.as_deref())?
        }
        Some(Command::Receipt { file, from, until, pdf }) => {
            let start = |day: Date| day.to_zoned(TimeZone::system()).map(|at| at.timestamp());
            let first = from.map_or(Ok(Timestamp::MIN), start)?;
            let last = until.map_or(Ok(Timestamp::MAX), |day| day.tomorrow().and_then(start))?;
            let receipt = machine::receipt(&state_dir, first, last)?;
            let bytes = if pdf { receipt.to_pdf()? } else { receipt.to_json().into_bytes() };
            machine::write_new(&file, &bytes)?;
        }
        Some(Command::VerifyReceipt { file }) => {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let verified = Receipt::parse(&bytes)?.verify()?;
            print(&(verified.lines().join("\n") + "\n"));
        }
        Some(Command::Backup { file }) => {
            machine::back_up(&state_dir, &file)?;
            // So that it is asked for no longer.
            here_if_not_there(&state_dir, send("backed-up", String::new()), |settings| {
                Ok(Settings { backed_up: Some(Timestamp::now()), ..settings })
            })?;
            eprintln!("the identity is in {}", file.display());
        }
        Some(Command::Restore { file }) => {
            let _only_one = alone(&state_dir)?;
            machine::restore(&state_dir, &file)?;
        }
        Some(Command::Uninstall { yes }) => {
            if !yes && !asked(&state_dir)? {
                anyhow::bail!("nothing was taken away");
            }
            // One that does not run need not be ended.
            let _ = send("end", String::new());
            let _only_one = alone(&state_dir)?;
            machine::uninstall(&state_dir)?;
            eprintln!("all of it is gone");
        }
        Some(Command::Engine | Command::CheckAddress) => {}
    }
    Ok(())
}

/// Sets keys, all or none, of the app that runs or for the next start.
fn set(
    state_dir: &Path,
    pairs: &[String],
    send: impl FnOnce(&str, String) -> Result<(), RemoteError>,
) -> anyhow::Result<()> {
    let pair = |pair| str::split_once(pair, '=').with_context(|| format!("{pair}: KEY=VALUE is expected"));
    let pairs: Vec<_> = pairs.iter().map(|text| pair(text)).collect::<Result<_, _>>()?;
    let fields = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
    here_if_not_there(state_dir, send("set", fields), |mut settings| {
        for (key, value) in &pairs {
            settings = settings.with(key, value)?;
        }
        Ok(settings)
    })
}

/// Where no app runs that could be told, changes what it reads when it is started.
fn here_if_not_there(
    state_dir: &Path,
    told: Result<(), RemoteError>,
    change: impl FnOnce(Settings) -> Result<Settings, SettingsError>,
) -> anyhow::Result<()> {
    match told {
        Err(RemoteError::Place(PlaceError::NotRunning { .. })) => {
            make_folder(state_dir)?;
            let _only_one = alone(state_dir)?;
            change(Settings::load(state_dir)?)?.save(state_dir)?;
            Ok(())
        }
        told => Ok(told?),
    }
}

async fn serve(config: Config, state_dir: &Path, run: Run, tray: Option<Tray>) -> anyhow::Result<()> {
    make_folder(state_dir)?;
    let Some(_only_one) = only_one(state_dir)? else {
        eprintln!("it runs already");
        if !run.headless {
            open(state_dir)?;
        }
        return Ok(());
    };
    let app = Arc::new(App::new(config.clone(), state_dir)?);
    let shutdown = CancellationToken::new();
    eebt_tor::stop_on_signal(shutdown.clone()).context("cannot handle signals")?;
    let page = Page::bind(&config, state_dir)
        .await
        .with_context(|| format!("cannot listen on {} (page)", config.page))?;
    let sources = match run.facts {
        Some(path) => vec![Box::new(FromFile::new(path)) as Box<dyn Source>],
        None => of_this_machine(app.carried()),
    };
    let seen = sources::watch(sources);
    eprintln!("ready: {}", page::HOW);
    if !run.headless && !run.hidden {
        open(state_dir)?;
    }
    let owner = Owner { app: Arc::clone(&app), state_dir: state_dir.to_owned(), shutdown: shutdown.clone() };
    let tray = async {
        match tray {
            Some(tray) => tray.run(owner).await,
            None => std::future::pending().await,
        }
    };
    let serving = page.run(Arc::clone(&app), shutdown.clone());
    tokio::select! {
        () = app.run(seen, shutdown) => {}
        () = serving => {}
        () = tray => {}
    }
    Ok(())
}

/// Makes the state folder, for its owner alone.
fn make_folder(state_dir: &Path) -> anyhow::Result<()> {
    let made = eebt_page::private_file::make_folder(state_dir);
    made.with_context(|| format!("cannot make {}", state_dir.display()))
}

/// A lock that one app has at a time.
fn only_one(state_dir: &Path) -> anyhow::Result<Option<File>> {
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The same lock, for what must not happen while the app runs. Waits for one that is ending.
fn alone(state_dir: &Path) -> anyhow::Result<Option<File>> {
    if !state_dir.exists() {
        return Ok(None);
    }
    // It may be ending, and lets what is open end before.
    let drain = Settings::load(state_dir).map(|settings| settings.drain()).unwrap_or_default();
    let until = Instant::now() + drain + ENDS_WITHIN;
    loop {
        if let Some(lock) = only_one(state_dir)? {
            return Ok(Some(lock));
        }
        anyhow::ensure!(Instant::now() < until, "the app runs; end it first");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Asks on the terminal whether all of it is to be taken away.
fn asked(state_dir: &Path) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("--yes: is needed where nobody can be asked");
    }
    eprintln!(
        "This takes away {}, with the identity of your exit bridge, and the start at log-in.",
        state_dir.display()
    );
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Opens the page in a window.
fn open(state_dir: &Path) -> anyhow::Result<()> {
    let file = eebt_page::entrance(state_dir, "hebtor-volunteer")?;
    // It is the browser that is missing, not the app.
    if let Err(error) = window::open(&file) {
        eprintln!("no window: {error}");
        eprintln!("hint: `{}` prints an address for any browser", page::HOW);
    }
    Ok(())
}

/// What it does, for a person.
fn said(status: &page::Status) -> String {
    let more = [("stuck", &status.blocked), ("the last exit bridge ended", &status.error)];
    let more = more.into_iter().filter_map(|(what, why)| Some(format!("{what}: {}\n", why.as_ref()?)));
    format!("{}\n{}", status.now, more.collect::<String>())
}

/// The one place that writes to stdout: data.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    print!("{text}");
}

/// What to try, for errors where that is known.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(RemoteError::Place(PlaceError::NotRunning { .. })) = error.downcast_ref() {
        return Some("start it: hebtor-volunteer");
    }
    if let Some(PlaceError::NotRunning { .. }) = error.downcast_ref() {
        return Some("start it: hebtor-volunteer");
    }
    match error.downcast_ref::<ConfigError>()? {
        ConfigError::Field { .. } | ConfigError::Parse { .. } => {
            Some("deploy/hebtor-volunteer.example.toml documents every key")
        }
        ConfigError::Read { .. } => Some("is the path right, and may this user read it?"),
        _ => None,
    }
}
