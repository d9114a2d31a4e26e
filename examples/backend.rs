//! The backend of the benchmark: a lean HTTP/1.1 server that answers every request with the same 60 bytes of JSON.
//!
//! `backend --listen 127.0.0.1:9000` or `backend --listen unix:/run/backend.sock`. One thread, keep-alive, pipelining;
//! a request body is skipped by its `Content-Length`, any other framing ends the connection.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n\
    {\"ok\":true,\"customers\":[{\"id\":1,\"name\":\"Ada\"},{\"id\":12345}]}";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let listen = match (args.next().as_deref(), args.next()) {
        (Some("--listen"), Some(listen)) => listen,
        _ => bail!("usage: backend --listen ADDR|unix:PATH"),
    };
    if let Some(path) = listen.strip_prefix("unix:") {
        let listener = UnixListener::bind(path).with_context(|| format!("binding {path}"))?;
        loop {
            tokio::spawn(serve(listener.accept().await?.0));
        }
    }
    let address: SocketAddr = listen.parse().with_context(|| format!("{listen} is no address"))?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("binding {address}"))?;
    loop {
        let stream = listener.accept().await?.0;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream));
    }
}

/// Answers requests until the peer closes or sends what cannot be framed.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(read) if read > 0 => filled += read,
            _ => return,
        }
        while let Some((head, mut body)) = request(&buffer[..filled]) {
            let mut used = head + body.min(filled - head);
            body -= used - head;
            while body > 0 {
                // The rest of the body follows the buffer: read it over the bytes already used.
                match stream.read(&mut buffer).await {
                    Ok(read) if read > 0 => (used, filled, body) = (read.min(body), read, body - read.min(body)),
                    _ => return,
                }
            }
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
            buffer.copy_within(used..filled, 0);
            filled -= used;
        }
        if filled == buffer.len() {
            return;
        }
    }
}

/// The lengths of the head and body of the request at the start of `bytes`, if its head is complete.
fn request(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        _ => return None,
    };
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or(0);
    Some((head, body))
}
