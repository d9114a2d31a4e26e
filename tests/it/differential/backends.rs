//! Real servers and routers that nobody here wrote, all with the same routes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::targets::Taste;
use crate::harness::process::{OnOrphaned, Process, free_port, server_dir};

/// A server with a router behind it.
pub(super) struct Kind {
    /// Its name in what tests print.
    pub(super) name: &'static str,
    /// `{port}` stands for the port to listen on.
    command: &'static [&'static str],
    /// Prefixes that it answers under as well.
    pub(super) aliases: &'static [&'static str],
    /// How it likes to have its routes spelled otherwise: most of what is tried should get somewhere.
    pub(super) taste: Taste,
}

macro_rules! kinds {
    ($($constant:ident = [$($word:literal),*] $(under $alias:literal)? by $taste:ident;)*) => {
        $(pub(super) const $constant: Kind = Kind {
            name: stringify!($constant),
            command: &[$($word),*],
            aliases: &[$($alias)?],
            taste: Taste::$taste,
        };)*
    };
}

kinds! {
    FASTAPI_UVICORN_HTTPTOOLS = ["python", "uvicorn", "routing_fastapi:plain", "--http", "httptools", "--port", "{port}"] by Escapes;
    FASTAPI_UVICORN_H11 = ["python", "uvicorn", "routing_fastapi:plain", "--http", "h11", "--port", "{port}"] by Escapes;
    FASTAPI_ROOT_PATH_HTTPTOOLS =
        ["python", "uvicorn", "routing_fastapi:rooted", "--http", "httptools", "--port", "{port}"] under "/svc" by Escapes;
    FASTAPI_ROOT_PATH_H11 = ["python", "uvicorn", "routing_fastapi:rooted", "--http", "h11", "--port", "{port}"]
        under "/svc" by Escapes;
    FASTAPI_MOUNTED_HTTPTOOLS =
        ["python", "uvicorn", "routing_fastapi:mounted", "--http", "httptools", "--port", "{port}"] under "/mnt" by Escapes;
    FASTAPI_MOUNTED_H11 = ["python", "uvicorn", "routing_fastapi:mounted", "--http", "h11", "--port", "{port}"]
        under "/mnt" by Escapes;
    FASTAPI_HYPERCORN = ["python", "hypercorn", "routing_fastapi:plain", "--bind", "127.0.0.1:{port}"] by Escapes;
    FLASK_GUNICORN = ["python", "gunicorn", "routing_flask:app", "--threads", "4", "--bind", "127.0.0.1:{port}"] by Escapes;
    FLASK_WAITRESS = ["python", "waitress", "--listen=127.0.0.1:{port}", "routing_flask:app"] by Escapes;
    DJANGO_GUNICORN = ["python", "gunicorn", "routing_django:app", "--threads", "4", "--bind", "127.0.0.1:{port}"] by Escapes;
    DJANGO_WAITRESS = ["python", "waitress", "--listen=127.0.0.1:{port}", "routing_django:app"] by Escapes;
    EXPRESS_5 = ["node", "express5", "{port}"] by Case;
    EXPRESS_4 = ["node", "express4", "{port}"] by Case;
    FASTIFY_5 = ["node", "fastify5", "{port}"] by Escapes;
    FASTIFY_5_LENIENT = ["node", "fastify5_lenient", "{port}"] by Escapes;
    FASTIFY_4 = ["node", "fastify4", "{port}"] by Escapes;
    HONO = ["node", "hono", "{port}"] by Escapes;
    KOA = ["node", "koa", "{port}"] by Case;
}

/// A running one.
pub(super) struct Backend {
    port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Backend {
    pub(super) async fn start(kind: &Kind) -> Backend {
        for _ in 0..5 {
            if let Some(backend) = Backend::try_start(kind, free_port()).await {
                return backend;
            }
        }
        panic!("no free port for {} in five attempts", kind.name);
    }

    pub(super) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `None` if somebody else has taken the port meanwhile.
    async fn try_start(kind: &Kind, port: u16) -> Option<Backend> {
        let root = env!("CARGO_MANIFEST_DIR");
        let (python, modules) =
            (format!("{root}/.test-tools/venv/bin/python"), format!("{root}/.test-tools/node/node_modules"));
        let (runtime, arguments) = kind.command.split_first().expect("a runtime");
        let mut command = match *runtime {
            "python" => vec![python.clone(), "-m".to_owned()],
            _ => vec!["node".to_owned(), format!("{root}/tests/backends/node/routing.cjs")],
        };
        for needed in [&python, &modules] {
            assert!(Path::new(needed).exists(), "{needed} is missing: scripts/test installs it");
        }
        command.extend(arguments.iter().map(|word| word.replace("{port}", &port.to_string())));
        let envs = [
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ("PYTHONPATH", format!("{root}/tests/backends")),
            ("NODE_PATH", modules),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let dir = server_dir();
        let mut process = Process::start("backend", dir.path(), &command, &envs, OnOrphaned::Kill, None);
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if process.exited().is_some() {
                let printed = process.stderr().to_lowercase();
                let taken = printed.contains("address already in use") || printed.contains("eaddrinuse");
                assert!(taken, "{} does not start:\n{printed}", kind.name);
                return None;
            }
            assert!(Instant::now() < deadline, "{} is not up after a minute:\n{}", kind.name, process.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(Backend { port, _process: process, _dir: dir })
    }
}
