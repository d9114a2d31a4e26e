//! A backend that the test plays itself, step by step: what comes before what is then no question of time.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::client::RawClient;

/// A listener on 127.0.0.1 whose connections the test serves.
pub(crate) struct Backend {
    listener: TcpListener,
}

impl Backend {
    pub(crate) async fn start() -> Backend {
        Backend { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port") }
    }

    /// As the configuration spells it.
    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().expect("a bound listener").to_string()
    }

    /// The next connection of the proxy.
    pub(crate) async fn accept(&self) -> RawClient {
        let accepted = timeout(Duration::from_secs(30), self.listener.accept()).await;
        let (stream, _) = accepted.expect("the proxy connects").expect("a connection");
        RawClient::over(stream)
    }

    /// The next connection and the head of its first request.
    pub(crate) async fn request(&self) -> (RawClient, String) {
        let mut connection = self.accept().await;
        let head = connection.raw_head().await;
        (connection, head)
    }

    /// Whether the proxy connects once more within `limit`.
    pub(crate) async fn is_asked_within(&self, limit: Duration) -> bool {
        timeout(limit, self.listener.accept()).await.is_ok()
    }
}
