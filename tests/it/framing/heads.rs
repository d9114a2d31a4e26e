//! Heads: request lines, line ends, names, lengths and codings that servers have been seen to read each in its own way.

use serde_json::json;

use super::{CLOSING, HOST, SMUGGLED, forwarded, received, refused, summary, world};
use crate::harness::RawClient;

/// The head of a request with these headers.
fn post(headers: &[u8]) -> Vec<u8> {
    [b"POST /x HTTP/1.1\r\nHost: app\r\n", headers, b"\r\n"].concat()
}

/// The same with a body of five bytes, or no chunks, and what a misreading would run.
fn attack(headers: &[u8]) -> Vec<u8> {
    attack_with(headers, "0\r\n\r\n")
}

fn attack_with(headers: &[u8], body: &str) -> Vec<u8> {
    [&post(headers), body.as_bytes(), SMUGGLED.as_bytes()].concat()
}

/// Whatever backends would make of these: they are refused, and so is all that comes behind them.
#[tokio::test]
async fn a_length_beside_a_coding() {
    let world = world().await;
    for headers in [
        &b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"[..],
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 0\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: 5\r\ntransfer-encoding:chunked\r\n",
        b"Content-Length: 5\r\nTransfer_Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent_Length: 5\r\n",
    ] {
        refused(&world, attack(headers), 400).await;
    }
}

/// `chunked` in disguise: some servers see through it, some take it for another coding, and some for none.
#[tokio::test]
async fn codings_in_disguise() {
    let world = world().await;
    for value in [
        &b"xchunked"[..],
        b"chunkedx",
        b"chunked, identity",
        b"identity, chunked",
        b"gzip, chunked",
        b"gzip",
        b"identity",
        b"cow",
        b"",
        b"chunked, chunked",
        b", chunked",
        b"chunked,",
        b"chunked ,",
        b"chunked;q=1",
        b"chunked ; a=b",
        b"\"chunked\"",
        b"'chunked'",
        b"chunked\0",
        b"\0chunked",
        b"\x0bchunked",
        b"chunked\x0b",
        b"chunked\x0c",
        b"\x0cchunked",
        b"chunked\x7f",
        b"chunked\x85",
        b"\xa0chunked",
        b"chun ked",
        b"chun\tked",
        b"chun\0ked",
        b"chun%6bed",
        b"c\xc4\xa5unked",
        b"chun\xe2\x84\xaaed",
        b"chunked\r\n\tX",
        b"chunked\r\n ",
        b"\r\n chunked",
        b"chunked\rX: 1",
        b"chunked\nX: 1",
    ] {
        for framing in [b"".as_slice(), b"Content-Length: 5\r\n"] {
            refused(&world, attack(&[framing, b"Transfer-Encoding: ", value, b"\r\n"].concat()), 400).await;
        }
    }
    for lines in [
        &b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"[..],
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: x\r\nX: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding\t: chunked\r\n",
        b"Transfer-Encoding\x0b: chunked\r\n",
        b"Transfer-Encoding\0: chunked\r\n",
        b"Transfer-Encoding chunked\r\n",
        b"Transfer Encoding: chunked\r\n",
        b"\x0bTransfer-Encoding: chunked\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"\tTransfer-Encoding: chunked\r\n",
        b"X: 1\r\n Transfer-Encoding: chunked\r\n",
        b"X: 1\r\n\tTransfer-Encoding: chunked\r\n",
        b"X: 1\nTransfer-Encoding: chunked\r\n",
        b"X: 1\rTransfer-Encoding: chunked\r\n",
        b"X: 1\r\rTransfer-Encoding: chunked\r\n",
        b"X: 1\n\rTransfer-Encoding: chunked\r\n",
        b"X:\nTransfer-Encoding: chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"TRANSFER_ENCODING: chunked\r\n",
        b"Tr\xc3\xa4nsfer-Encoding: chunked\r\n",
        b"Transfer-\xe2\x84\xaancoding: chunked\r\n",
    ] {
        for framing in [b"".as_slice(), b"Content-Length: 5\r\n"] {
            // A name of other bytes is another header, if a name at all.
            refused(&world, attack(&[framing, lines].concat()), 400).await;
        }
    }
    for value in ["chunked", "CHUNKED", "Chunked", "\t chunked \t"] {
        let head = post(format!("Transfer-Encoding:{value}\r\n").as_bytes());
        let request = [head.as_slice(), b"2\r\nhi\r\n0\r\n\r\n"].concat();
        forwarded(&world, request, &[("/x", "hi")]).await;
    }
}

#[tokio::test]
async fn lengths_that_are_none() {
    let world = world().await;
    for value in [
        "",
        "+2",
        "-2",
        "-0",
        "0x2",
        "0b1",
        "2x",
        "2.0",
        "2e0",
        "2 2",
        "2,2",
        "2, 2",
        "2, 3",
        "2;",
        "2;q=1",
        ",2",
        "2,",
        "\"2\"",
        "02",
        "00000000000000000002",
        "00",
        "1_0",
        "2\x0b",
        "\x0b2",
        "2\0",
        "\u{662}",
        "18446744073709551618",
        "99999999999999999999999999",
        "two",
        "NaN",
    ] {
        refused(&world, attack_with(format!("Content-Length: {value}\r\n").as_bytes(), "hi"), 400).await;
    }
    for lines in [
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\ncontent-length: 3\r\n",
        "Content-Length: 0\r\nContent-Length: 40\r\n",
        "Content-Length: 40\r\nX: 1\r\nContent-Length: 0\r\n",
        "Content-Length: 2\r\nContent_Length: 3\r\n",
        "Content_Length: 2\r\n",
        "CONTENT_LENGTH: 2\r\n",
        "Content-Length : 2\r\n",
        "Content-Length\t: 2\r\n",
        "Content-Length\0: 2\r\n",
        " Content-Length: 2\r\n",
        "X: 1\r\n Content-Length: 2\r\n",
        "X: 1\nContent-Length: 2\r\n",
        "X: 1\rContent-Length: 2\r\n",
        "Content-Length:\r\n 2\r\n",
        "Content-Length: 2\r\n 0\r\n",
        "Content-Length: 1\n2\r\n",
    ] {
        refused(&world, attack_with(lines.as_bytes(), "hi"), 400).await;
    }
    for value in ["2", "\t2 ", " \t 2\t"] {
        forwarded(
            &world,
            [&post(format!("Content-Length:{value}\r\n").as_bytes()), &b"hi"[..]].concat(),
            &[("/x", "hi")],
        )
        .await;
    }
}

#[tokio::test]
async fn request_lines_and_line_ends() {
    let world = world().await;
    for line in [
        "get /x",
        "Get /x",
        "GET http://app/x",
        "GET http://other/x",
        "GET HTTP://app/x",
        "GET app:80",
        "GET x",
        "GET ?/x",
        "GET *",
        "GET  /x",
        "GET \t/x",
        "GET \0/x",
        "GET /x\0",
        "GET /x\x0by",
        "GET /x\ry",
        "GET /x HTTP/1.1\rGET /smuggled",
        "GET /x%0d%0aGET /smuggled",
    ] {
        // Where these end is beyond doubt, and what comes behind is a request of its own.
        let shown = format!("{line} HTTP/1.1\r\n{HOST}\r\n");
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("{shown}GET /behind HTTP/1.1\r\n{HOST}\r\n")).await.expect("sent");
        let answer = connection.response().await;
        assert_eq!(answer.status, 400, "{shown}");
        let expected: &[_] = if answer.header("Connection") == Some("close") { &[] } else { &[("/behind", "")] };
        if !expected.is_empty() {
            assert_eq!(connection.response().await.status, 200, "{shown}");
        }
        assert_eq!(summary(&received(&world, &shown).await), *expected, "{shown}");
    }
    for head in [
        "GET /x HTTP/3.0\r\n",
        "GET /x HTTP/2.0\r\n",
        "GET /x HTTP/1.2\r\n",
        "GET /x HTTP/1.10\r\n",
        "GET /x HTTP/01.1\r\n",
        "GET /x HTTP/1.1x\r\n",
        "GET /x HTTP/ 1.1\r\n",
        "GET /x http/1.1\r\n",
        "GET /x HTTP/0.9\r\n",
        "GET /x\r\n",
        "GET /x \r\n",
        "GET\r\n",
        "GET\t/x HTTP/1.1\r\n",
        "GET /x\tHTTP/1.1\r\n",
        "GET /x HTTP/1.1 \r\n",
        "GET /x HTTP/1.1\t\r\n",
        "GET /x HTTP/1.1\0\r\n",
        "GET /x HTTP/1.1 HTTP/1.1\r\n",
        "GET /x HTTP/1.1 /y HTTP/1.0\r\n",
        "GET /x HTTP/1.1\r\r\n",
        "GET /x HTTP/1.1\n\r\n",
        "GET /x HTTP/1.1\n",
        "GET /x\rHTTP/1.1\r\n",
        "GET /x\x0bHTTP/1.1\r\n",
        "GET\x0b/x HTTP/1.1\r\n",
        " GET /x HTTP/1.1\r\n",
        "\tGET /x HTTP/1.1\r\n",
        "\0GET /x HTTP/1.1\r\n",
        "G\0ET /x HTTP/1.1\r\n",
        "G(ET /x HTTP/1.1\r\n",
        "/x HTTP/1.1\r\n",
        " /x HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "GET /x\nGET /smuggled HTTP/1.1\r\n",
        "\n\nGET /x HTTP/1.1\r\n",
        "\n\r\nGET /x HTTP/1.1\r\n",
    ] {
        refused(&world, format!("{head}{HOST}\r\n{SMUGGLED}"), 400).await;
    }
    for headers in [
        "X: 1\n",
        "X: 1\nY: 2\n",
        "X: 1\r\n\n",
        "X: 1\n\n",
        "X: 1\n\r\n",
        "X: 1\r\r\n",
        "X: 1\rY: 2\r\n",
        "X: 1\0\r\n",
        "X: \x01\r\n",
        "X: \x7f\r\n",
        "X A: 1\r\n",
        "X\r\n",
        ": 1\r\n",
        "X : 1\r\n",
        "X\0: 1\r\n",
        "\u{fc}: 1\r\n",
        "X: 1\r\n folded\r\n",
        "X: 1\r\n\tfolded\r\n",
        "X: 1\r\n \r\n",
        " X: 1\r\n",
        "Host: other\r\n",
        "hOST: app\r\n",
        "Host: app, other\r\nHost: app\r\n",
    ] {
        refused(&world, format!("GET /x HTTP/1.1\r\n{HOST}{headers}\r\n{SMUGGLED}"), 400).await;
    }
    for request in [
        "GET /x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\nX-A: 1\r\n\r\n",
        "GET /x HTTP/1.1\nHost: app\n\n",
        "GET /x HTTP/1.0\n\n",
        "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: app\r\n\n",
    ] {
        refused(&world, format!("{request}{SMUGGLED}"), 400).await;
    }
    // Lines that are empty are passed over, if they are lines (RFC 9112 section 2.2).
    forwarded(
        &world,
        format!("\r\n\r\nGET /x HTTP/1.1\r\n{HOST}\r\n\r\nGET /y HTTP/1.1\r\n{HOST}\r\n"),
        &[("/x", ""), ("/y", "")],
    )
    .await;
    // Blanks are part of the target that is judged, and go upstream as no blanks: where it ends is in no doubt there.
    for (target, seen) in [("/a b", "/a%20b"), ("/a /x", "/a%20/x"), ("/x ", "/x%20")] {
        forwarded(&world, format!("GET {target} HTTP/1.1\r\n{HOST}\r\n"), &[(seen, "")]).await;
    }
}

/// Nothing else than what HTTP knows may be expected: a backend could wait where the proxy does not, or the other way round.
#[tokio::test]
async fn expectations() {
    let world = world().await;
    for lines in [
        "Expect: 100-continue, 100-continue\r\n",
        "Expect: 100-continue\r\nExpect: 100-continue\r\n",
        "Expect: x\r\nExpect: 100-continue\r\n",
        "Expect: y 100-continue\r\n",
        "Expect: 100-continue;q=1\r\n",
        "Expect: \"100-continue\"\r\n",
        "Expect: 101-continue\r\n",
        "Expect: x\r\n",
        "Expect:\r\n",
        "Expect:\r\n 100-continue\r\n",
        "Expect : 100-continue\r\n",
    ] {
        for framing in ["", "Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n"] {
            refused(&world, attack(format!("{lines}{framing}").as_bytes()), 400).await;
        }
    }
}

/// What pingora refuses by itself, and what we do: the client is told the same.
#[tokio::test]
async fn what_a_refusal_says() {
    let world = world().await;
    for headers in [
        "Content-Length: 2, 2\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "X: 1\nY: 2\r\n",
    ] {
        let answer = refused(&world, attack(headers.as_bytes()), 400).await;
        assert_eq!(answer.json()["reason"], json!("request_malformed"), "{headers:?}");
        assert!(answer.header("X-Request-ID").is_some(), "{headers:?}");
    }
}

#[tokio::test]
async fn methods_about_the_server_itself() {
    let world = world().await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for _ in 0..2 {
        connection.send(format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n")).await.expect("still open");
        assert_eq!(connection.response().await.status, 204);
    }
    connection.send(format!("CONNECT app:443 HTTP/1.1\r\n{HOST}\r\n{SMUGGLED}")).await.expect("still open");
    assert_eq!(connection.response().await.status, 405);
    assert!(connection.closes_within(CLOSING).await, "what comes behind is no tunnel");
    assert_eq!(received(&world, "CONNECT").await, []);
}

/// One that ends the connection after each answer unless it is asked not to, and needs no Host.
#[tokio::test]
async fn http_1_0() {
    let world = world().await;
    let mut connection = forwarded(&world, format!("GET /x HTTP/1.0\r\n\r\n{SMUGGLED}"), &[("/x", "")]).await;
    assert!(connection.closes_within(CLOSING).await);
    let kept = "GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    forwarded(&world, kept.repeat(3), &[("/x", ""); 3]).await;
    let upload = "POST /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi";
    forwarded(&world, upload.repeat(2), &[("/x", "hi"); 2]).await;
    // No body without a length, whatever comes.
    let mut connection = forwarded(&world, format!("POST /x HTTP/1.0\r\n\r\n{SMUGGLED}"), &[("/x", "")]).await;
    assert!(connection.closes_within(CLOSING).await);
}
