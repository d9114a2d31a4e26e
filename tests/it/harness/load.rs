//! A steady load beside a fault: requests leave when they are due, whether or not earlier ones have been answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::background;
use super::client::{RawClient, RawResponse};

/// How many requests are under way at most; the later ones then wait, and their time counts from when they were due.
const MOST_CONNECTIONS: usize = 512;

/// A kept connection that was idle for longer is not used again: the server may be about to close it.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Requests under way until [`Load::stop`].
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<()>>,
}

/// What load to make.
#[derive(Clone)]
pub(crate) struct LoadBuilder {
    address: SocketAddr,
    rate: u32,
    kept_alive: bool,
    timeout: Duration,
    headers: Vec<&'static str>,
}

/// One request: `GET target`.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) target: String,
    /// Sent as `X-Tenant-ID`.
    pub(crate) tenant: Option<Uuid>,
    /// What it is counted under: `hot`, `cold`.
    pub(crate) label: &'static str,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) label: &'static str,
    pub(crate) tenant: Option<Uuid>,
    /// When it was due.
    pub(crate) start: Instant,
    /// From then to the end of the response, or of the attempt.
    pub(crate) took: Duration,
    pub(crate) answer: Result<u16, String>,
    /// Of the response headers asked for, those that came.
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// Samples in the order in which they ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

struct Shared {
    load: LoadBuilder,
    idle: Mutex<Vec<(RawClient, Instant)>>,
    samples: Mutex<Vec<Sample>>,
    slots: Arc<Semaphore>,
}

impl Load {
    /// A hundred requests a second to `address` on connections that are kept.
    pub(crate) fn on(address: SocketAddr) -> LoadBuilder {
        LoadBuilder { address, rate: 100, kept_alive: true, timeout: Duration::from_secs(10), headers: Vec::new() }
    }

    /// What has ended so far.
    pub(crate) fn so_far(&self) -> Samples {
        Samples(self.shared.samples().clone())
    }

    /// Sends nothing more, waits for what is under way, and returns everything.
    pub(crate) async fn stop(mut self) -> Samples {
        self.stop.send_replace(true);
        let running = self.running.take().expect("stopped once");
        running.await.expect("what came back was HTTP");
        Samples(std::mem::take(&mut *self.shared.samples()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl LoadBuilder {
    /// Requests a second.
    pub(crate) fn rate(mut self, rate: u32) -> LoadBuilder {
        self.rate = rate;
        self
    }

    /// A connection of its own for each request.
    pub(crate) fn on_new_connections(mut self) -> LoadBuilder {
        self.kept_alive = false;
        self
    }

    /// How long an answer may take from when a connection is to be had, ten seconds if not told.
    pub(crate) fn timeout(mut self, timeout: Duration) -> LoadBuilder {
        self.timeout = timeout;
        self
    }

    /// Response headers to keep in each sample.
    pub(crate) fn keep_headers(mut self, names: &[&'static str]) -> LoadBuilder {
        self.headers = names.to_vec();
        self
    }

    /// Begins; `choose` makes the request of each number from 0.
    pub(crate) fn start(self, mut choose: impl FnMut(u64) -> Ask + Send + 'static) -> Load {
        let (stop, mut stopped) = watch::channel(false);
        let pause = Duration::from_secs(1) / self.rate;
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let shared = Arc::new(Shared { load: self, idle: Mutex::default(), samples: Mutex::default(), slots });
        let state = Arc::clone(&shared);
        let running = background().spawn(async move {
            let mut under_way = JoinSet::new();
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0.. {
                let due = tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                    due = ticks.tick() => due.into_std(),
                };
                under_way.spawn(Arc::clone(&state).send(choose(number), due));
                while let Some(ended) = under_way.try_join_next() {
                    ended.expect("what came back was HTTP");
                }
            }
            while let Some(ended) = under_way.join_next().await {
                ended.expect("what came back was HTTP");
            }
        });
        Load { shared, stop, running: Some(running) }
    }
}

impl Shared {
    async fn send(self: Arc<Shared>, ask: Ask, start: Instant) {
        let slot = self.slots.acquire().await.expect("never closed");
        let answer = match timeout(self.load.timeout, self.exchange(&ask)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {:?}", self.load.timeout)),
        };
        drop(slot);
        let took = start.elapsed();
        let (answer, headers) = match answer {
            Ok(answer) => (Ok(answer.status), self.kept_headers(&answer)),
            Err(error) => (Err(error), Vec::new()),
        };
        self.samples().push(Sample { label: ask.label, tenant: ask.tenant, start, took, answer, headers });
    }

    async fn exchange(&self, ask: &Ask) -> std::io::Result<RawResponse> {
        let address = self.load.address;
        let mut client = match self.kept() {
            Some(client) => client,
            None => RawClient::over(TcpStream::connect(address).await?),
        };
        let mut head = format!("GET {} HTTP/1.1\r\nHost: {address}\r\n", ask.target);
        if let Some(tenant) = ask.tenant {
            head += &format!("X-Tenant-ID: {tenant}\r\n");
        }
        head += if self.load.kept_alive { "\r\n" } else { "Connection: close\r\n\r\n" };
        client.send(head).await?;
        let answer = client.try_response(false).await?;
        if self.load.kept_alive && answer.header("connection") != Some("close") {
            self.idle().push((client, Instant::now()));
        }
        Ok(answer)
    }

    /// The connection that was used last, if any is fit for use.
    fn kept(&self) -> Option<RawClient> {
        let mut idle = self.idle();
        let (client, since) = idle.pop()?;
        if since.elapsed() < KEPT_FOR {
            return Some(client);
        }
        idle.clear(); // the others are older
        None
    }

    fn kept_headers(&self, answer: &RawResponse) -> Vec<(&'static str, String)> {
        let header = |name: &&'static str| Some((*name, answer.header(name)?.to_owned()));
        self.load.headers.iter().filter_map(header).collect()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(RawClient, Instant)>> {
        self.idle.lock().expect("nobody panics with this lock")
    }

    fn samples(&self) -> MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().expect("nobody panics with this lock")
    }
}

impl Ask {
    pub(crate) fn get(target: impl Into<String>, tenant: Uuid, label: &'static str) -> Ask {
        Ask { target: target.into(), tenant: Some(tenant), label }
    }
}

impl Sample {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

impl Samples {
    /// Those under one label.
    pub(crate) fn of(&self, label: &str) -> Samples {
        self.only(|sample| sample.label == label)
    }

    /// Those that were due from `from` on and before `to`.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Samples {
        self.only(|sample| (from..to).contains(&sample.start))
    }

    pub(crate) fn only(&self, wanted: impl Fn(&Sample) -> bool) -> Samples {
        Samples(self.0.iter().filter(|sample| wanted(sample)).cloned().collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of the requests (`0.99`) took at most; panics when there are none.
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let mut times: Vec<Duration> = self.0.iter().map(|sample| sample.took).collect();
        times.sort_unstable();
        let rank = (share * times.len() as f64).ceil() as usize;
        times[rank.clamp(1, times.len().max(1)) - 1]
    }

    /// How many got each status; 0 stands for no answer.
    pub(crate) fn by_status(&self) -> BTreeMap<u16, usize> {
        self.counted(|sample| *sample.answer.as_ref().unwrap_or(&0))
    }

    /// How many got each value of a header that was kept; an empty one stands for none.
    pub(crate) fn by_header(&self, name: &str) -> BTreeMap<String, usize> {
        self.counted(|sample| sample.header(name).unwrap_or_default().to_owned())
    }

    /// Why there was no answer, and how often.
    pub(crate) fn errors(&self) -> BTreeMap<String, usize> {
        self.only(|sample| sample.answer.is_err())
            .counted(|sample| sample.answer.as_ref().err().cloned().unwrap_or_default())
    }

    fn counted<K: Ord>(&self, key: impl Fn(&Sample) -> K) -> BTreeMap<K, usize> {
        let mut counts = BTreeMap::new();
        for sample in &self.0 {
            *counts.entry(key(sample)).or_default() += 1;
        }
        counts
    }
}
