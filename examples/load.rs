//! The load of the benchmark: HTTP/1.1 over keep-alive connections to a loopback address, reported as one line of JSON.
//!
//! `load closed --target 127.0.0.1:8080 --connections 64 --seconds 3`: each connection sends its next request when it has
//! its answer, which gives the highest rate. `load open … --rate 5000`: requests are due at fixed times whatever the
//! server does, and latency counts from the time a request was due, so a stall is seen by every request it delays.
//! An unexpected status, a broken answer or a broken connection is an error, and any error makes the exit code 1.
//! With `--pid` the CPU time that process used between warm-up and end is reported for each request answered meanwhile.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A request or a connection without progress for so long is an error.
const STALL: Duration = Duration::from_secs(5);
/// What the kernel adds to a sleep (its default timer slack and the wake-up): asked for that much earlier.
const SLEEP_SLACK: Duration = Duration::from_micros(60);
/// A connection that fails so often in a row gives up.
const MAX_FAILURES: u32 = 10;
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// The next request of a connection follows its answer: the highest rate.
    Closed,
    /// A constant rate; latency from the time a request was due.
    Open,
}

/// Loads a server on a loopback address and prints one line of JSON.
#[derive(Clone, Parser)]
#[command(args_override_self = true)]
struct Args {
    mode: Mode,
    /// Address of the server, loopback only.
    #[arg(long)]
    target: SocketAddr,
    /// Path and query to request; `{n}` becomes a number from 0 to `--cycle`.
    #[arg(long, default_value = "/")]
    path: String,
    /// A header to send, `Name: value`, repeatable; `{n}` as in `--path`, `{n:012x}` as twelve hexadecimal digits.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    /// How many different requests `{n}` makes.
    #[arg(long, default_value_t = 1)]
    cycle: usize,
    /// The status that every answer must have.
    #[arg(long, default_value_t = 200)]
    expect: u16,
    /// Connections, each with one request under way.
    #[arg(long, short = 'c', default_value_t = 64)]
    connections: usize,
    /// How long to send for.
    #[arg(long, short = 's', default_value_t = 3.0)]
    seconds: f64,
    /// Requests a second over all connections (open only).
    #[arg(long, short = 'r', default_value_t = 5000.0)]
    rate: f64,
    /// Stop after this many requests.
    #[arg(long, default_value_t = u64::MAX)]
    max_requests: u64,
    /// The process whose CPU time to report for each request.
    #[arg(long)]
    pid: Option<u32>,
    /// Seconds at the start that count neither for CPU time nor for the rate of a closed loop.
    #[arg(long, default_value_t = 0.1)]
    warmup: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.target.ip().is_loopback(), "{} is not a loopback address", args.target);
    ensure!(args.connections > 0 && args.cycle > 0, "--connections and --cycle start at 1");
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds lies between 0 and 3600");
    ensure!(args.rate > 0.0 && args.rate <= 1e6, "--rate lies between 0 and 1000000");
    let requests: Arc<[Vec<u8>]> = (0..args.cycle).map(|n| request(&args, n)).collect();

    ensure!(args.warmup >= 0.0 && args.warmup < args.seconds, "--warmup is shorter than --seconds");

    // Connections of an open loop are opened before its first request is due.
    let started = Instant::now() + Duration::from_millis(if args.mode == Mode::Open { 100 } else { 0 });
    let (done, until_done) = mpsc::sync_channel::<()>(0);
    let window = thread::spawn({
        let args = args.clone();
        move || Window::observe(&args, started, &until_done)
    });
    let tally = match args.mode {
        Mode::Closed => closed(&args, &requests, started)?,
        Mode::Open => open(&args, &requests, started)?,
    };
    drop(done);
    let window = window.join().map_err(|_| anyhow!("the observing thread panicked"))??;
    println!("{}", tally.report(&args, &window));
    if tally.errors > 0 || tally.answers() == 0 {
        bail!("{} errors, {} answers; the first error: {}", tally.errors, tally.answers(), tally.first_error());
    }
    Ok(())
}

fn request(args: &Args, n: usize) -> Vec<u8> {
    let fill = |text: &str| text.replace("{n}", &n.to_string()).replace("{n:012x}", &format!("{n:012x}"));
    let mut head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", fill(&args.path), args.target);
    for header in &args.headers {
        head += &format!("{}\r\n", fill(header));
    }
    (head + "\r\n").into_bytes()
}

/// The share of `total` that falls to connection `index`.
fn share(total: u64, connections: usize, index: usize) -> u64 {
    let connections = connections as u64;
    total / connections + u64::from((index as u64) < total % connections)
}

/// Answers so far, of all connections.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// What happened between the end of the warm-up and the end of sending.
struct Window {
    seconds: f64,
    answers: u64,
    cpu_ns: u64,
}

impl Window {
    /// Ends early when the sending does, which `until_done` shows by hanging up.
    fn observe(args: &Args, started: Instant, until_done: &mpsc::Receiver<()>) -> anyhow::Result<Self> {
        let sample = |at: f64| {
            let at = started + Duration::from_secs_f64(at);
            let _ = until_done.recv_timeout(at.saturating_duration_since(Instant::now()));
            anyhow::Ok((Instant::now(), ANSWERS.load(Ordering::Relaxed), args.pid.map_or(Ok(0), cpu_ns)?))
        };
        let (from, answers, cpu) = sample(args.warmup)?;
        let (to, all_answers, all_cpu) = sample(args.seconds)?;
        Ok(Self {
            seconds: (to - from).as_secs_f64(),
            answers: all_answers - answers,
            cpu_ns: all_cpu.saturating_sub(cpu),
        })
    }
}

/// The CPU time that the threads of a process have used, as the scheduler counts it.
fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += schedstat.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
}

/// What was seen, by one connection or by all.
struct Tally {
    latency: Histogram<u64>,
    statuses: BTreeMap<u16, u64>,
    errors: u64,
    error: Option<String>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        // Microseconds up to a minute, three digits.
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        Ok(Self { latency, statuses: BTreeMap::new(), errors: 0, error: None })
    }

    fn answer(&mut self, args: &Args, status: u16, latency: Duration) {
        ANSWERS.fetch_add(1, Ordering::Relaxed);
        *self.statuses.entry(status).or_default() += 1;
        if status == args.expect {
            self.latency.saturating_record(latency.as_micros() as u64);
        } else {
            self.fail(format!("status {status}, not {}", args.expect));
        }
    }

    /// Puts down how an exchange ended. Only a connection that may carry another is kept.
    fn settle<S>(
        &mut self,
        args: &Args,
        outcome: anyhow::Result<(u16, bool)>,
        since: Instant,
        stream: &mut Option<S>,
        failures: &mut u32,
    ) {
        let keep = match outcome {
            Ok((status, keep)) => {
                self.answer(args, status, since.elapsed());
                *failures = 0;
                keep
            }
            Err(error) => {
                self.fail(format!("{error:#}"));
                *failures += 1;
                false
            }
        };
        if !keep {
            *stream = None;
        }
    }

    fn fail(&mut self, error: String) {
        self.errors += 1;
        self.error.get_or_insert(error);
    }

    fn merge(&mut self, other: Self) -> anyhow::Result<()> {
        self.latency.add(other.latency)?;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.errors += other.errors;
        self.error = self.error.take().or(other.error);
        Ok(())
    }

    fn answers(&self) -> u64 {
        self.statuses.values().sum()
    }

    fn first_error(&self) -> &str {
        self.error.as_deref().unwrap_or("none")
    }

    fn report(&self, args: &Args, window: &Window) -> serde_json::Value {
        let mode = if args.mode == Mode::Open { "open" } else { "closed" };
        let cpu_us = window.cpu_ns as f64 / 1e3 / window.answers.max(1) as f64;
        let micros = |quantile: f64| self.latency.value_at_quantile(quantile);
        serde_json::json!({
            "mode": mode,
            "connections": args.connections,
            "asked_rate": (args.mode == Mode::Open).then_some(args.rate),
            "requests": self.answers(),
            "window_seconds": window.seconds,
            "window_requests": window.answers,
            "rate": window.answers as f64 / window.seconds,
            "cpu_us_per_request": args.pid.map(|_| cpu_us),
            "p50_us": micros(0.5),
            "p99_us": micros(0.99),
            "p999_us": micros(0.999),
            "max_us": self.latency.max(),
            "errors": self.errors,
            "first_error": self.error,
            "statuses": self.statuses,
        })
    }
}

/// Whether the answer at the start of `bytes` is complete, and if so its status and whether the connection stays.
fn answer(bytes: &[u8]) -> anyhow::Result<Option<(u16, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else {
        return Ok(None);
    };
    let status = response.code.context("an answer without a status")?;
    let mut length = matches!(status, 204 | 304).then_some(0);
    let mut keep = response.version == Some(1);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = Some(std::str::from_utf8(header.value)?.parse::<usize>()?);
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep &= !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let end = head + length.context("an answer without Content-Length")?;
    ensure!(end <= BUFFER_BYTES, "an answer of {end} bytes is more than this tool reads");
    ensure!(bytes.len() <= end, "{} bytes after the answer", bytes.len() - end);
    Ok((bytes.len() == end).then_some((status, keep)))
}

/// All connections on one thread, so that the load itself costs little.
fn closed(args: &Args, requests: &Arc<[Vec<u8>]>, started: Instant) -> anyhow::Result<Tally> {
    let deadline = started + Duration::from_secs_f64(args.seconds);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks: Vec<_> = (0..args.connections)
            .map(|index| tokio::spawn(closed_connection(args.clone(), Arc::clone(requests), index, deadline)))
            .collect();
        let mut tally = Tally::new()?;
        for task in tasks {
            tally.merge(task.await??)?;
        }
        Ok(tally)
    })
}

async fn closed_connection(
    args: Args,
    requests: Arc<[Vec<u8>]>,
    index: usize,
    deadline: Instant,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::new()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut stream = None;
    let mut failures = 0;
    for turn in 0..share(args.max_requests, args.connections, index) {
        let due = Instant::now();
        if due >= deadline || failures == MAX_FAILURES {
            break;
        }
        let request = &requests[(index + turn as usize * args.connections) % requests.len()];
        // One limit for the whole run: cheaper than one a request, and a stall is still found.
        let limit = tokio::time::Instant::from_std(deadline.max(due) + STALL);
        let exchange = async {
            let connected = match &mut stream {
                Some(stream) => stream,
                none => {
                    let connected = tokio::net::TcpStream::connect(args.target).await?;
                    connected.set_nodelay(true)?;
                    none.insert(connected)
                }
            };
            connected.write_all(request).await?;
            let mut filled = 0;
            loop {
                let read = connected.read(&mut buffer[filled..]).await?;
                ensure!(read > 0, "the connection closed before the answer was complete");
                filled += read;
                if let Some(answer) = answer(&buffer[..filled])? {
                    return Ok(answer);
                }
            }
        };
        let outcome = tokio::time::timeout_at(limit, exchange).await.unwrap_or_else(|_| bail!("no answer in time"));
        tally.settle(&args, outcome, due, &mut stream, &mut failures);
    }
    Ok(tally)
}

/// One thread a connection: a thread's sleep is precise to some 60 µs, where an event loop's timers tick in
/// milliseconds.
fn open(args: &Args, requests: &Arc<[Vec<u8>]>, started: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new()?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .map(|index| {
                thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn_scoped(scope, move || open_connection(args, requests, index, started))
            })
            .collect::<Result<_, _>>()?;
        for thread in threads {
            tally.merge(thread.join().map_err(|_| anyhow!("a connection's thread panicked"))??)?;
        }
        Ok(tally)
    })
}

fn open_connection(args: &Args, requests: &[Vec<u8>], index: usize, first: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut stream = connect(args.target).inspect_err(|error| tally.fail(format!("{error:#}"))).ok();
    let total = args.max_requests.min((args.rate * args.seconds) as u64);
    // Past this the server is not keeping up at all; what was due and not sent by then counts as errors.
    let give_up = first + Duration::from_secs_f64(args.seconds) + STALL;
    let mut failures = 0;
    let turns = share(total, args.connections, index);
    for turn in 0..turns {
        let number = index + turn as usize * args.connections;
        let due = first + Duration::from_secs_f64(number as f64 / args.rate);
        if Instant::now() > give_up || failures == MAX_FAILURES {
            tally.fail(format!("{} requests due were never sent", turns - turn));
            break;
        }
        // Woken a little early, it sends a little early, and counts from there: never from later than due.
        if let Some(wait) = due.checked_duration_since(Instant::now() + SLEEP_SLACK) {
            #[expect(clippy::disallowed_methods, reason = "a thread for each connection: no task runs on it")]
            thread::sleep(wait);
        }
        let from = due.min(Instant::now());
        let outcome = exchange(args.target, &mut stream, &requests[number % requests.len()], &mut buffer);
        tally.settle(args, outcome, from, &mut stream, &mut failures);
    }
    Ok(tally)
}

fn connect(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, STALL)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(stream)
}

fn exchange(
    target: SocketAddr,
    stream: &mut Option<TcpStream>,
    request: &[u8],
    buffer: &mut [u8],
) -> anyhow::Result<(u16, bool)> {
    let connected = match stream {
        Some(stream) => stream,
        none => none.insert(connect(target)?),
    };
    connected.write_all(request)?;
    let mut filled = 0;
    loop {
        let read = connected.read(&mut buffer[filled..])?;
        ensure!(read > 0, "the connection closed before the answer was complete");
        filled += read;
        if let Some(answer) = answer(&buffer[..filled])? {
            return Ok(answer);
        }
    }
}
