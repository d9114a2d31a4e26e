//! What the gate is measured against: pingora passing requests through, and nothing else.
//!
//! `bare --listen 127.0.0.1:9100 --upstream 127.0.0.1:9000|unix:PATH [--threads N] [--no-steal]`. Written to be as cheap
//! as pingora allows: the peer is built once and cloned, no filter is implemented, and not even the compression module
//! that pingora adds by default is carried. Allocator, keep-alive pool and upstream time-outs
//! are the gate's: nobody runs a proxy without.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use clap::Parser;
use pingora::modules::http::HttpModules;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A pingora pass-through to compare the gate with.
#[derive(Parser)]
struct Args {
    /// Address to listen on.
    #[arg(long)]
    listen: String,
    /// The backend: `host:port`, or `unix:` and a path.
    #[arg(long)]
    upstream: String,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// One single-threaded runtime a worker instead of one work-stealing runtime for all.
    #[arg(long)]
    no_steal: bool,
}

struct Bare {
    peer: HttpPeer,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer.clone()))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut peer = match args.upstream.strip_prefix("unix:") {
        Some(path) => HttpPeer::new_uds(path, false, String::new()).context("the upstream's path")?,
        None => HttpPeer::new(args.upstream.as_str(), false, String::new()),
    };
    peer.options.connection_timeout = Some(Duration::from_secs(1));
    peer.options.read_timeout = Some(Duration::from_secs(60));
    peer.options.write_timeout = Some(Duration::from_secs(60));
    peer.options.idle_timeout = Some(Duration::from_secs(3));

    let conf = ServerConf {
        threads: args.threads,
        work_stealing: !args.no_steal,
        upstream_keepalive_pool_size: 512,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), Bare { peer });
    service.add_tcp(&args.listen);
    server.add_service(service);
    server.run_forever()
}
