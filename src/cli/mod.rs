//! The command line: one file a command, each parses, calls and prints.

mod backfill;
mod check_config;
mod completions;
mod demo;
mod explain;
mod license;
mod migrate;
mod output;
mod progress;
mod prune;
mod relay;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::settings::{Settings, SettingsError, environment};

/// A reverse proxy that runs beside a multi-tenant backend and enforces feature licences: it forwards a request, or
/// answers 402 with JSON that says which feature is missing and where to upgrade.
#[derive(Parser)]
#[command(name = "dotmac-license-proxy", version = crate::VERSION_AND_COMMIT, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Exit status: 0 ok, 1 failed, 2 bad usage or configuration. Of explain: 3 for a denial.

Environment (each also as NAME_FILE, a file that holds the value):
  DOTMAC_LICENSE_DATABASE_URL    Postgres, for writes (or DATABASE_URL)
  DOTMAC_LICENSE_LICENSE_DB_URL  Postgres, for reads, a replica may do (or LICENSE_DB_URL)
  DOTMAC_LICENSE_REDIS_URL       Redis: redis://, rediss:// or unix:// (or REDIS_URL)
  DOTMAC_LICENSE_ADMIN_TOKEN     what the admin API asks for (or ADMIN_TOKEN)
  DOTMAC_LICENSE_CACHE_TTL       overrides licenses.ttl (or CACHE_TTL)")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve: the proxy, and its ops listener with /livez, /readyz and /metrics
    Serve(serve::Options),
    /// Try it: a stub backend, one tenant per plan and the proxy, with nothing to install
    Demo(demo::Options),
    /// Tell a fleet of changes in Postgres by way of Redis, for `change_feed: redis`; two may run
    Relay(relay::Options),
    /// Check a configuration, or what it means for a backend
    CheckConfig(check_config::Options),
    /// Tell what becomes of a request, and why: exit status 3 if it is denied
    Explain(explain::Options),
    /// Show and change licences
    License(license::Options),
    /// Create or update the tables in Postgres
    Migrate(migrate::Options),
    /// Give every tenant of a table a licence, but those that have one; may be interrupted and run again
    Backfill(backfill::Options),
    /// Remove old usage and denials, in batches; may be interrupted and run again, anywhere
    Prune(prune::Options),
    /// Print what a shell needs to complete these commands
    Completions(completions::Options),
}

/// Which configuration.
#[derive(Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "DOTMAC_LICENSE_CONFIG")]
    config: PathBuf,
}

/// Why a command ends.
#[derive(Debug)]
enum Failure {
    /// It was asked for something that can't be done as it was asked.
    Usage(String),
    /// It failed.
    Failed(anyhow::Error),
    /// What was asked about is denied, as has been said already.
    Denied,
}

/// Run the command that the arguments name.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Relay(options) => relay::run(&options),
        Command::CheckConfig(options) => check_config::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::License(options) => license::run(options),
        Command::Migrate(options) => migrate::run(&options),
        Command::Backfill(options) => backfill::run(&options),
        Command::Prune(options) => prune::run(&options),
        Command::Completions(options) => completions::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprintln!("{}", message.trim_end());
            ExitCode::from(2)
        }
        Err(Failure::Denied) => ExitCode::from(3),
        Err(Failure::Failed(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl ConfigFile {
    fn load(&self) -> Result<Settings, Failure> {
        Ok(Settings::load(&self.config, &environment)?)
    }

    /// The same for a program that stays: its log begins, with what is doubtful about the settings and what the environment
    /// overrides.
    fn load_and_log(&self) -> Result<Settings, Failure> {
        let settings = self.load()?;
        start_log(settings.config.log.level.as_str());
        for warning in &settings.warnings {
            tracing::warn!(%warning, "configuration");
        }
        for override_ in &settings.overrides {
            tracing::info!(environment = override_, "the environment overrides the configuration");
        }
        Ok(settings)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Resolves when somebody wants this process to end.
fn interrupted() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Who runs this, as the environment has it.
fn user() -> Option<String> {
    ["USER", "LOGNAME"].into_iter().find_map(environment).filter(|user| !user.is_empty())
}

/// The program's own log: JSON lines on standard error, apart from the access log on standard output. `RUST_LOG` beats the
/// configured level. What fails on the way of a request is logged by us, with its id, and not by pingora once more, which has
/// an error for each client that goes away within a head.
fn start_log(level: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},pingora_core=warn,pingora_proxy=off")));
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(std::io::stderr);
    // A second call, from a test in the same process, changes nothing.
    let _ = subscriber.with_env_filter(filter).try_init();
}
