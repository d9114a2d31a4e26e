//! Who may use the admin API: whoever knows the token, and no page that a browser shows.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Request, StatusCode, header};
use licensing::config::Address;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::refusal::Refusal;
use crate::api::headers::is_json;
use crate::secret::Secret;

/// Lets requests in.
pub(crate) struct Guard {
    /// None: nobody is let in.
    token: Option<Token>,
    /// Whether only this host can connect. A page of a browser on it can as well, under a name of its own choice that leads
    /// here (DNS rebinding), so that the name has to be looked at.
    is_loopback: bool,
}

struct Token {
    secret: Secret,
    current: ArcSwap<SecretString>,
}

impl Guard {
    /// For a listener at `listen`.
    pub(crate) fn new(token: Option<Secret>, listen: &Address) -> Self {
        let token = token.map(|secret| Token { current: ArcSwap::from_pointee(secret.first().clone()), secret });
        Self { token, is_loopback: matches!(listen, Address::Tcp(address) if address.ip().is_loopback()) }
    }

    /// Whether anybody can be let in at all.
    pub(crate) const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Let a request in.
    ///
    /// # Errors
    /// With the refusal.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        if self.is_loopback && !names_loopback(request) {
            let message = "name this host as localhost or by its loopback address";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
        if headers.contains_key(header::ORIGIN) {
            let message = "this API is not for pages: send no Origin";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "origin_not_allowed", message));
        }
        let Some(token) = &self.token else {
            let message = "nobody is let in until DOTMAC_LICENSE_ADMIN_TOKEN or ADMIN_TOKEN is set (or NAME_FILE)";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "no_admin_token", message));
        };
        if !bearer(headers).is_some_and(|said| token.is(said)) {
            let message = "send the admin token as Authorization: Bearer TOKEN";
            let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message);
            return Err(refusal.with(header::WWW_AUTHENTICATE, "Bearer realm=\"dotmac-license-proxy admin\""));
        }
        if has_body(headers) && !is_json(headers) {
            let message = "bodies are JSON: send Content-Type: application/json";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        Ok(())
    }
}

impl Token {
    /// How long this takes says nothing about the token but its length.
    fn is(&self, said: &[u8]) -> bool {
        if let Some(token) = self.secret.changed(&self.current.load()) {
            tracing::info!("the admin token has changed");
            self.current.store(Arc::new(token));
        }
        said.ct_eq(self.current.load().expose_secret().as_bytes()).into()
    }
}

/// What is presented by the scheme `Bearer` (RFC 6750, section 2.1), by one header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whether what it is sent to is this host by one of the names that nobody else can give it.
fn names_loopback<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // In absolute form the target names a host as well.
    host.is_some_and(|host| is_loopback(&host)) && request.uri().authority().is_none_or(is_loopback)
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(listen: &str, token: Option<&str>) -> Guard {
        Guard::new(token.map(Secret::new), &listen.parse().expect("an address"))
    }

    /// What a request to `uri` with these headers is refused for; none: it is let in.
    fn refused(guard: &Guard, uri: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.admit(&request.body(()).expect("a request")).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn the_token_and_nothing_like_it() {
        let guard = guard("127.0.0.1:9090", Some("s3cret"));
        let with = |values: &[&str]| {
            let tokens = values.iter().map(|value| ("authorization", *value));
            refused(&guard, "/", &[("host", "127.0.0.1:9090")].into_iter().chain(tokens).collect::<Vec<_>>())
        };
        for value in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
            assert_eq!(with(&[value]), None, "{value}");
        }
        for value in [
            "s3cret",
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer s3cret2",
            "Bearer S3cret",
            "Basic s3cret",
            "Token s3cret",
            "Bearers3cret",
            "Bearer s3cret,s3cret",
            "Bearer x s3cret",
            "",
        ] {
            assert_eq!(with(&[value]), Some("unauthorized"), "{value:?}");
        }
        assert_eq!(with(&[]), Some("unauthorized"));
        assert_eq!(with(&["Bearer s3cret", "Bearer s3cret"]), Some("unauthorized"), "two of them");
    }

    #[test]
    fn without_a_token_nobody_is_let_in() {
        let guard = guard("127.0.0.1:9090", None);
        for value in ["Bearer ", "Bearer x", ""] {
            let headers = [("host", "localhost"), ("authorization", value)];
            assert_eq!(refused(&guard, "/", &headers), Some("no_admin_token"), "{value:?}");
        }
    }

    #[test]
    fn only_by_a_name_that_nobody_else_can_give_it() {
        let token = ("authorization", "Bearer s3cret");
        let loopback = guard("127.0.0.1:9090", Some("s3cret"));
        for host in ["127.0.0.1:9090", "localhost:9090", "LOCALHOST", "127.0.0.1", "[::1]:9090", "127.1.2.3"] {
            assert_eq!(refused(&loopback, "/", &[token, ("host", host)]), None, "{host}");
        }
        for host in
            ["rebound.example:9090", "localhost.example", "10.0.0.1:9090", "127.0.0.1.example", "0.0.0.0", "", "[::]"]
        {
            assert_eq!(refused(&loopback, "/", &[token, ("host", host)]), Some("host_not_allowed"), "{host:?}");
        }
        assert_eq!(refused(&loopback, "/", &[token]), Some("host_not_allowed"), "none at all");
        let two = [token, ("host", "localhost"), ("host", "rebound.example")];
        assert_eq!(refused(&loopback, "/", &two), Some("host_not_allowed"));
        let absolute = refused(&loopback, "http://rebound.example/", &[token, ("host", "localhost")]);
        assert_eq!(absolute, Some("host_not_allowed"));
        // Elsewhere names are the operator's business.
        for listen in ["0.0.0.0:9090", "10.0.0.1:9090", "unix:/run/admin.sock"] {
            assert_eq!(refused(&guard(listen, Some("s3cret")), "/", &[token, ("host", "admin.internal")]), None);
        }
    }

    #[test]
    fn no_page_and_no_form() {
        let guard = guard("127.0.0.1:9090", Some("s3cret"));
        let with = |name, value| {
            let own = [("host", "localhost"), ("authorization", "Bearer s3cret"), ("content-length", "2")];
            refused(&guard, "/", &[&own[..], &[(name, value)]].concat())
        };
        for origin in ["https://evil.example", "null", "http://localhost:9090"] {
            assert_eq!(with("origin", origin), Some("origin_not_allowed"));
        }
        for json in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(with("content-type", json), None, "{json}");
        }
        for other in
            ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/plain; application/json", ""]
        {
            assert_eq!(with("content-type", other), Some("unsupported_media_type"), "{other}");
        }
        assert_eq!(with("x-other", ""), Some("unsupported_media_type"), "a body of no type");
    }

    #[test]
    fn a_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "one\n").expect("written");
        let secret = Secret::from_file("one", file.path().to_owned());
        let guard = Guard::new(Some(secret), &"unix:/run/admin.sock".parse().expect("an address"));
        let is_let_in = |token: &str| refused(&guard, "/", &[("authorization", &format!("Bearer {token}"))]).is_none();
        assert!(is_let_in("one") && !is_let_in("two"));
        std::fs::write(file.path(), "two\n").expect("written");
        assert!(is_let_in("two") && !is_let_in("one"));
    }
}
