//! Connections to the upstream for requests that ask for an upgrade.
//!
//! Pingora tells the half that talks to the upstream where a request's body ends by a message, also where there is no body.
//! If that half reads a quick 101 before the message, it takes the end of the body for the end of the tunnel, and the
//! WebSocket is torn down as soon as it is open (pingora's issue 946). Here the first attempt to read finds nothing, so the
//! message, which is waiting by then, comes first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OkOrErr, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The same upstream, over a connection of its own that is not used again.
pub(super) fn peer_for_upgrade(upstream: &HttpPeer) -> HttpPeer {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
    let mut peer = upstream.clone();
    // Only connections of one group serve each other's requests; the others are of group 0.
    peer.group_key = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.custom_l4 = Some(Arc::new(Connector));
    peer
}

/// Makes such connections. How long it may take is the peer's `total_connection_timeout`.
#[derive(Debug)]
struct Connector;

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let socket: Box<dyn VirtualSocket> = match address {
            SocketAddr::Inet(address) => Box::new(ReadLater::new(TcpStream::connect(address).await.map_err(failed)?)),
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().or_err(ErrorType::SocketError, "a Unix socket without a path")?;
                Box::new(ReadLater::new(UnixStream::connect(path).await.map_err(failed)?))
            }
        };
        Ok(VirtualSocketStream::new(socket).into())
    }
}

fn failed(error: io::Error) -> Box<Error> {
    let etype = match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
        _ => ErrorType::ConnectError,
    };
    Error::because(etype, "connecting for an upgrade", error)
}

/// A stream of which the first attempt to read finds nothing.
#[derive(Debug)]
struct ReadLater<S> {
    stream: S,
    asked: bool,
}

impl<S> ReadLater<S> {
    fn new(stream: S) -> Self {
        Self { stream, asked: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadLater<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.asked, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadLater<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl VirtualSocket for ReadLater<TcpStream> {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

impl VirtualSocket for ReadLater<UnixStream> {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}
