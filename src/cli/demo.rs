//! `demo`: a stub backend, embedded licences with one tenant per plan, and the proxy, in one process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::{Json, Response};
use axum::routing::{any, get};
use clap::Args;
use licensing::config::{Address, Config, UpstreamAddress};
use licensing::license::License;
use serde_json::{Map, Value, json};
use tower_http::services::{ServeDir, ServeFile};

use super::{Failure, start_log};
use crate::server::Assembly;
use crate::settings::Settings;
use crate::stores::FileSource;

#[derive(Args)]
pub(super) struct Options {
    /// The port of the proxy; another free one is taken if it is in use
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The port of /metrics; another free one is taken if it is in use
    #[arg(long, default_value_t = 9464)]
    ops_port: u16,
    /// Print the access log
    #[arg(long)]
    access_log: bool,
    /// The built portal to serve; see frontend/README.md
    #[arg(long, value_name = "DIR", default_value = "frontend/apps/customer/dist")]
    portal: PathBuf,
}

const CONFIG: &str = include_str!("../../config/embedded.yaml");
const LICENSES: &str = include_str!("../../config/licenses.yaml");

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    start_log("warn");
    // The environment of whoever tries it is none of the demo's business.
    let mut settings = Settings::from_text(Path::new("config/embedded.yaml"), CONFIG, &|_| None)?;
    let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the stub backend")?;
    let backend_address = backend.local_addr().context("the stub backend")?;
    let proxy = free_port(options.port)?;
    let ops = free_port(options.ops_port)?;
    point(&mut settings.config, proxy, ops, backend_address)?;
    settings.config.log.access = options.access_log;

    let source = FileSource::from_text("config/licenses.yaml", LICENSES, &settings.config.plans)
        .map_err(|message| anyhow!(message))?;
    let licenses = source.all();
    let portal = Portal::at(&options.portal, proxy, &licenses);
    let in_a_browser = if portal.is_some() { pages(proxy, &licenses) } else { no_pages(&options.portal) };
    let guide = guide(proxy, ops, &licenses, &in_a_browser);
    let assembly = Assembly::with_source(settings, Arc::new(source))?;
    serve_backend(&assembly, backend, portal)?;
    assembly.runtime().spawn(async move {
        while tokio::net::TcpStream::connect(proxy).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        println!("{guide}");
    });
    assembly.run()?;
    Ok(())
}

/// `port` on loopback, or a free one if that is taken.
fn free_port(port: u16) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

fn point(config: &mut Config, proxy: SocketAddr, ops: SocketAddr, backend: SocketAddr) -> anyhow::Result<()> {
    config.listen.proxy = Address::Tcp(proxy);
    config.listen.ops = Address::Tcp(ops);
    config.upstream.address = backend.to_string().parse::<UpstreamAddress>().map_err(|e| anyhow!("{e}"))?;
    config.shutdown.drain = licensing::config::Duration::from_millis(0);
    Ok(())
}

/// Answers every path with what it was sent, as the proxy's users would see it from a backend of theirs; where there is a portal,
/// that is served beside it.
fn serve_backend(assembly: &Assembly, listener: TcpListener, portal: Option<Portal>) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "an echo that routes nothing: the path only has to be shown")]
    async fn echo(request: Request) -> Json<Value> {
        Json(json!({
            "backend": "stub",
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "received": license_headers(request.headers()),
        }))
    }
    let router = match portal {
        None => Router::new().fallback(echo),
        Some(portal) => portal.router().route("/api/{*path}", any(echo)),
    };
    listener.set_nonblocking(true)?;
    let _runtime = assembly.runtime().enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    assembly.runtime().spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

/// The portal, where it is built.
struct Portal {
    dir: PathBuf,
    /// What it asks for at first: where the proxy is, and whose pages there are.
    settings: Value,
}

impl Portal {
    /// What is built in `dir`, if anything is.
    fn at(dir: &Path, proxy: SocketAddr, licenses: &[License]) -> Option<Self> {
        let tenant = |license: &License| json!({ "name": *license.plan, "url": page_of(license, proxy) });
        let settings = json!({
            "baseUrl": "",
            "headers": { "X-User-Role": "owner" },
            "webSocketUrl": "/ws/license",
            "tenants": licenses.iter().map(tenant).collect::<Vec<_>>(),
        });
        index_of(dir).is_file().then(|| Self { dir: dir.to_owned(), settings })
    }

    /// Its files, its settings, and its one page for every path that is no file: the page itself knows what to show there.
    fn router(self) -> Router {
        let files = ServeDir::new(&self.dir).fallback(ServeFile::new(index_of(&self.dir)));
        let settings = self.settings;
        let router = Router::new().route("/portal.json", get(async move || Json(settings))).fallback_service(files);
        // It may be built anew, and be another on this port tomorrow.
        router.layer(map_response(async |mut response: Response| {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }))
    }
}

fn index_of(dir: &Path) -> PathBuf {
    dir.join("index.html")
}

/// The page of a tenant: its host says whose it is.
fn page_of(license: &License, proxy: SocketAddr) -> String {
    format!("http://{}.localhost:{}/", license.tenant, proxy.port())
}

fn license_headers(headers: &HeaderMap) -> Map<String, Value> {
    let ours = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-"));
    ours.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into())).collect()
}

fn guide(proxy: SocketAddr, ops: SocketAddr, licenses: &[License], in_a_browser: &str) -> String {
    let mut text = format!(
        "dotmac-license-proxy demo: the proxy listens on http://{proxy}, before a stub backend. Ctrl-C ends it.\n\n\
         Tenants, one per plan:\n"
    );
    for license in licenses {
        text += &format!("  {}  {:<13} {}\n", license.tenant, license.plan, license.features.joined());
    }
    text += "\n";
    text += in_a_browser;
    let with_crm = licenses.iter().find(|license| license.features.contains("crm"));
    let without_crm = licenses.iter().find(|license| !license.features.contains("crm"));
    if let (Some(with), Some(without)) = (with_crm, without_crm) {
        text += &format!(
            "\nA plan that includes the feature, 200:\n  \
               curl -i -H 'X-Tenant-ID: {}' http://{proxy}/api/v1/crm/customers\n\
             \nOne that does not, 402:\n  \
               curl -i -H 'X-Tenant-ID: {}' http://{proxy}/api/v1/crm/customers\n\
             \nThree tickets a month are in its plan: 200, 200, 200, and 402 for the fourth:\n  \
               curl -i -w '\\n' -X POST -H 'X-Tenant-ID: {}' 'http://{proxy}/api/v1/tickets?number=[1-4]'\n\
             \nIts owner buys the next plan, 200 and the licence:\n  \
               curl -i -X POST -H 'X-Tenant-ID: {}' -H 'X-User-Role: owner' -H 'Content-Type: application/json' \
               -d '{{\"new_plan\":\"professional\"}}' http://{proxy}/api/v1/license/upgrade\n\
             \nThe same call as before, now 200:\n  \
               curl -i -H 'X-Tenant-ID: {}' http://{proxy}/api/v1/crm/customers\n\
             \nWhat a portal is shown of the licence:\n  \
               curl -i -H 'X-Tenant-ID: {}' http://{proxy}/license\n\
             \nA core module needs no licence, 200:\n  \
               curl -i http://{proxy}/api/v1/network/devices\n\
             \nWhat it counted:\n  \
               curl -s http://{ops}/metrics | grep ^dotmac_\n",
            with.tenant, without.tenant, without.tenant, without.tenant, without.tenant, without.tenant
        );
    }
    text
}

/// Where the portal's pages are, and what there is to see.
fn pages(proxy: SocketAddr, licenses: &[License]) -> String {
    let mut text = "In a browser, each tenant has a page of its own:\n".to_owned();
    for license in licenses {
        text += &format!("  {:<13} {}\n", license.plan, page_of(license, proxy));
    }
    text += "On the starter's Dashboard \"Look up customers\" is denied, with a 402 and a prompt. \"See plans with CRM\" leads to the\n\
             upgrade. After it the same click is a 200, and CRM is in the navigation, without a reload. Start the demo again to\n\
             begin anew.\n";
    text
}

/// That there are no pages yet, and how they come about.
fn no_pages(portal: &Path) -> String {
    format!(
        "For the same in a browser, build the portal (there is no {}), then run this again:\n  \
           npm ci --prefix frontend && npm run build --prefix frontend\n",
        index_of(portal).display()
    )
}
