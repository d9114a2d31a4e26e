//! One request of header lines as they are, over HTTP/1.1, over HTTP/2, or as the opening of a WebSocket.

use std::net::SocketAddr;

use super::client::RawClient;
use super::raw_h2::{self, Field};

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Transport {
    Http1,
    Http2,
    Upgrade,
}

impl Transport {
    pub(crate) const ALL: [Transport; 3] = [Transport::Http1, Transport::Http2, Transport::Upgrade];

    /// The status of a request that is let through to [`Reply::WebSocket`](super::Reply::WebSocket) or to a 200.
    pub(crate) fn passed(self) -> u16 {
        if self == Transport::Upgrade { 101 } else { 200 }
    }

    /// `GET target` of `host` with these header lines, on a connection of its own. The status; none where HTTP/2 ended the
    /// stream instead.
    pub(crate) async fn ask(self, address: SocketAddr, host: &str, target: &str, lines: &[&str]) -> Option<u16> {
        if self == Transport::Http2 {
            let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", target)];
            let mut fields: Vec<Field> = pseudo.map(|(name, value)| (name.into(), value.into())).into();
            for line in lines {
                // What comes after the colon is the value, line ends and all: a frame can hold what a line can't.
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                fields.push((name.to_ascii_lowercase().into(), value.trim_matches([' ', '\t']).into()));
            }
            return raw_h2::request(address, &fields).await;
        }
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n");
        if self == Transport::Upgrade {
            head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        }
        for line in lines {
            head += line;
            head += "\r\n";
        }
        let mut connection = RawClient::connect(address).await;
        connection.send(head + "\r\n").await.expect("sent");
        Some(connection.response().await.status)
    }
}
