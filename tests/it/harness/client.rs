//! An HTTP/1.1 client over a bare socket: sends exactly the bytes it is given, and shows what came back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long any single answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to the proxy, or to anything that speaks HTTP/1.1.
pub(crate) struct RawClient {
    stream: TcpStream,
    unread: BytesMut,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    /// The status line and headers as they were sent, up to the empty line.
    pub(crate) head: Vec<u8>,
    /// In order, names as they were spelled.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl RawResponse {
    /// The only header of that name, whatever its case; `None` if there is none.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| &**value);
        assert!(values.next().is_none(), "{name} came more than once: {:?}", self.headers);
        value
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the body when it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    fn parse(head: Vec<u8>) -> RawResponse {
        let mut headers = [httparse::EMPTY_HEADER; 300];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head);
        assert!(
            matches!(parsed, Ok(httparse::Status::Complete(_))),
            "not a response head ({parsed:?}): {:?}",
            String::from_utf8_lossy(&head)
        );
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = response.code.expect("a complete response has a status");
        let headers = response.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
        RawResponse { status, headers, head, body: Vec::new() }
    }
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> RawClient {
        let stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        RawClient::over(stream)
    }

    /// Over a connection that is there already.
    pub(crate) fn over(stream: TcpStream) -> RawClient {
        stream.set_nodelay(true).expect("a socket option");
        RawClient { stream, unread: BytesMut::new() }
    }

    /// Sends exactly these bytes. Fails when the peer has closed the connection.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Reads the next response; interim ones (1xx, but 101) are returned like any other.
    pub(crate) async fn response(&mut self) -> RawResponse {
        self.try_response(false).await.unwrap_or_else(|error| panic!("no response: {error}"))
    }

    /// Reads the next response to a HEAD request: no body, whatever its headers announce.
    pub(crate) async fn head_response(&mut self) -> RawResponse {
        self.try_response(true).await.unwrap_or_else(|error| panic!("no response: {error}"))
    }

    /// Reads a head alone; the body is then read by [`RawClient::bytes`].
    pub(crate) async fn response_head(&mut self) -> RawResponse {
        let head = within_limit(self.head()).await.unwrap_or_else(|error| panic!("no response: {error}"));
        RawResponse::parse(head)
    }

    /// Reads the next response, or says why there is none (`UnexpectedEof`: the peer closed the connection).
    pub(crate) async fn try_response(&mut self, head_only: bool) -> io::Result<RawResponse> {
        within_limit(async {
            let mut response = RawResponse::parse(self.head().await?);
            let bodiless = head_only || response.status < 200 || matches!(response.status, 204 | 304);
            let chunked =
                response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
            response.body = if bodiless {
                Vec::new()
            } else if chunked {
                self.chunked_body().await?
            } else if let Some(length) = response.header("content-length") {
                self.exactly(length.parse().expect("Content-Length is a number")).await?
            } else {
                self.rest().await?
            };
            Ok(response)
        })
        .await
    }

    /// The head of a request or a response, up to and including the empty line, as it was sent.
    pub(crate) async fn raw_head(&mut self) -> String {
        let head = within_limit(self.head()).await.unwrap_or_else(|error| panic!("no head: {error}"));
        String::from_utf8_lossy(&head).into_owned()
    }

    /// Everything up to and including `end`, as it was sent.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let bytes = within_limit(self.up_to(end.as_bytes())).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("no {end:?}: {error}; unread: {:?}", self.unread));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whatever bytes come next, at least one; empty when the peer has closed.
    pub(crate) async fn bytes(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            within_limit(self.more()).await?;
        }
        Ok(self.unread.split().to_vec())
    }

    /// Whether the peer closes the connection within `limit`, sending nothing more.
    pub(crate) async fn closes_within(&mut self, limit: Duration) -> bool {
        let ended = tokio::time::timeout(limit, self.more()).await;
        self.unread.is_empty() && matches!(ended, Ok(Ok(false) | Err(_)))
    }

    /// More bytes from the peer; false at its end.
    async fn more(&mut self) -> io::Result<bool> {
        self.unread.reserve(64 * 1024);
        Ok(self.stream.read_buf(&mut self.unread).await? > 0)
    }

    async fn head(&mut self) -> io::Result<Vec<u8>> {
        self.up_to(b"\r\n\r\n").await
    }

    /// Everything up to and including `end`.
    async fn up_to(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Ok(self.unread.split_to(at + end.len()).to_vec());
            }
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unread.split_to(length).to_vec())
    }

    async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more().await? {}
        Ok(self.unread.split().to_vec())
    }

    async fn chunked_body(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.up_to(b"\r\n").await?;
            let size = String::from_utf8_lossy(&line);
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            if size == 0 {
                while self.up_to(b"\r\n").await?.len() > 2 {} // trailers
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            self.exactly(2).await?; // the line end after a chunk
        }
    }
}

/// One request on a connection of its own: the method, the target byte for byte, and headers beside Host.
pub(crate) async fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> RawResponse {
    let mut client = RawClient::connect(address).await;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    client.send(head + "Connection: close\r\n\r\n").await.expect("the peer accepts a request");
    if method == "HEAD" { client.head_response().await } else { client.response().await }
}

async fn within_limit<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("no answer in {LIMIT:?}"))
}
