//! Pages of other origins: which may ask and read our answers (CORS, Fetch standard section 3.3), and which may act for
//! their visitors.

use crate::answer::Answer;
use crate::config::{CorsSettings, Origin};

/// What pages of other origins may read of an answer of ours, beside its body and what they always may. `Date` is the clock
/// that a licence ends by.
const EXPOSED: &str = "X-Request-ID, Date, ETag, Retry-After, RateLimit, RateLimit-Policy";

/// The methods that a preflight allows; the backend knows which of them it serves.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// For how long a browser needs not ask again, in seconds: what all of them accept.
const MAX_AGE: &str = "600";

/// Which other origins are listed. By default none.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    origins: Vec<Origin>,
    credentials: bool,
}

impl Cors {
    /// From configuration.
    pub fn new(settings: &CorsSettings) -> Self {
        Self { origins: settings.allow_origins.clone(), credentials: settings.allow_credentials }
    }

    /// The answer to a preflight: an `OPTIONS` request by which a browser asks whether a page of `origin` may send a request
    /// with `method` and headers of these names, as `Access-Control-Request-Headers` lists them. None for what is no
    /// preflight of a listed origin: that is a request like any other. [`Cors::headers`] belong to this answer as to every one.
    pub fn preflight(&self, origin: &[u8], method: &[u8], headers: Option<&[u8]>) -> Option<Answer> {
        self.listed(origin)?;
        let method = token(method)?;
        let headers = match headers {
            Some(names) => Some(tokens(names)?),
            None => None,
        };
        let is_usual = METHODS.split(", ").any(|usual| usual == method);
        let methods = if is_usual { METHODS.to_owned() } else { format!("{METHODS}, {method}") };
        let vary = "Access-Control-Request-Method, Access-Control-Request-Headers";
        let mut answer = vec![
            ("Access-Control-Allow-Methods", methods),
            ("Access-Control-Max-Age", MAX_AGE.to_owned()),
            ("Vary", vary.to_owned()),
        ];
        answer.extend(headers.map(|names| ("Access-Control-Allow-Headers", names)));
        Some(Answer { status: 204, headers: answer, body: Vec::new() })
    }

    /// What is added to an answer of ours to a request from a page of `origin`, if one asks. Answers of the backend are the
    /// backend's.
    pub fn headers(&self, origin: Option<&[u8]>) -> Vec<(&'static str, String)> {
        if self.origins.is_empty() {
            return Vec::new();
        }
        let mut headers = vec![("Vary", "Origin".to_owned())];
        if let Some(origin) = origin.and_then(|origin| self.listed(origin)) {
            headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
            headers.push(("Access-Control-Expose-Headers", EXPOSED.to_owned()));
            if self.credentials {
                headers.push(("Access-Control-Allow-Credentials", "true".to_owned()));
            }
        }
        headers
    }

    /// Whether a page of `origin` may act for its visitor, whom a cookie names: if it is listed, by its own name and not as
    /// `*`, or comes from the host that the request is for. The scheme is not compared: whether there is TLS in front of us,
    /// the gateway knows alone.
    pub fn may_act(&self, origin: &[u8], host: Option<&[u8]>) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        if self.origins.iter().any(|listed| !listed.is_any() && listed.as_str() == origin) {
            return true;
        }
        let host = host.and_then(|host| std::str::from_utf8(host).ok());
        match (origin.split_once("://"), host) {
            (Some((scheme, authority)), Some(host)) => {
                let port = match scheme {
                    "http" => ":80",
                    "https" => ":443",
                    _ => return false,
                };
                let without_port = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_owned();
                !authority.is_empty() && without_port(authority).eq_ignore_ascii_case(&without_port(host))
            }
            _ => false,
        }
    }

    /// The origin as text, if its pages may ask us.
    fn listed<'o>(&self, origin: &'o [u8]) -> Option<&'o str> {
        let origin = std::str::from_utf8(origin).ok().filter(|origin| *origin != "null")?;
        self.origins.iter().any(|listed| listed.is_any() || listed.as_str() == origin).then_some(origin)
    }
}

/// A token of HTTP (RFC 9110 section 5.6.2).
fn token(text: &[u8]) -> Option<&str> {
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty() && text.as_bytes().iter().all(is_token))
}

/// A list of tokens, written anew. Empty items are no items (RFC 9110 section 5.6.1).
fn tokens(list: &[u8]) -> Option<String> {
    let items = list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty());
    Some(items.map(token).collect::<Option<Vec<_>>>()?.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "https://app.example.com";

    fn cors(origins: &[&str], allow_credentials: bool) -> Cors {
        let allow_origins = origins.iter().map(|origin| origin.parse().expect("an origin")).collect();
        Cors::new(&CorsSettings { allow_origins, allow_credentials })
    }

    fn get<'a>(headers: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
        let mut found = headers.iter().filter(|(other, _)| *other == name).map(|(_, value)| value.as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "{name} twice");
        first
    }

    #[test]
    fn a_preflight_of_a_listed_origin() {
        let answer = cors(&[APP], true).preflight(APP.as_bytes(), b"PATCH", Some(b"authorization,  content-type ,"));
        let answer = answer.expect("a preflight");
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        let get = |name| get(&answer.headers, name);
        assert_eq!(get("Access-Control-Allow-Methods"), Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        assert_eq!(get("Access-Control-Allow-Headers"), Some("authorization, content-type"));
        assert_eq!(get("Access-Control-Max-Age"), Some("600"));
        assert_eq!(get("Vary"), Some("Access-Control-Request-Method, Access-Control-Request-Headers"));
        let unusual = cors(&[APP], false).preflight(APP.as_bytes(), b"PURGE", None).expect("a preflight");
        let methods = unusual.headers.iter().find(|(name, _)| *name == "Access-Control-Allow-Methods");
        assert!(methods.is_some_and(|(_, methods)| methods.ends_with(", OPTIONS, PURGE")));
        assert_eq!(unusual.headers.len(), 3, "no names of headers: {:?}", unusual.headers);
    }

    #[test]
    fn what_is_no_preflight_of_a_listed_origin() {
        let one = cors(&[APP], false);
        for (origin, method, headers) in [
            ("https://evil.example.com", "GET", None),
            ("https://app.example.com.evil.com", "GET", None),
            ("http://app.example.com", "GET", None),
            ("https://app.example.com:8443", "GET", None),
            ("null", "GET", None),
            ("", "GET", None),
            (APP, "", None),
            (APP, "GET /", None),
            (APP, "GET", Some("x y")),
            (APP, "GET", Some("x\r\ny: z")),
        ] {
            let headers = headers.map(str::as_bytes);
            assert_eq!(one.preflight(origin.as_bytes(), method.as_bytes(), headers), None, "{origin} {method}");
        }
        assert_eq!(Cors::default().preflight(APP.as_bytes(), b"GET", None), None);
        let every = cors(&["*"], false);
        assert!(every.preflight(b"http://x", b"GET", None).is_some());
        assert_eq!(every.preflight(b"null", b"GET", None), None, "no one's origin");
    }

    #[test]
    fn what_is_added_to_our_answers() {
        let one = cors(&[APP], true);
        let listed = one.headers(Some(APP.as_bytes()));
        assert_eq!(get(&listed, "Access-Control-Allow-Origin"), Some(APP));
        assert_eq!(get(&listed, "Access-Control-Expose-Headers"), Some(EXPOSED));
        assert_eq!(get(&listed, "Access-Control-Allow-Credentials"), Some("true"));
        assert_eq!(get(&listed, "Vary"), Some("Origin"));
        for origin in [None, Some(&b"https://evil.example.com"[..]), Some(b"null"), Some(b"\xFF")] {
            assert_eq!(one.headers(origin), [("Vary", "Origin".to_owned())], "{origin:?}");
        }
        assert_eq!(Cors::default().headers(Some(APP.as_bytes())), []);
    }

    #[test]
    fn who_may_act() {
        let (one, every) = (cors(&[APP], false), cors(&["*"], false));
        for (origin, host, expected) in [
            (APP, Some("api.example.com"), true),
            (APP, None, true),
            ("https://api.example.com", Some("api.example.com"), true),
            ("https://api.example.com", Some("API.example.com:443"), true),
            ("http://api.example.com", Some("api.example.com"), true),
            ("http://localhost:8080", Some("localhost:8080"), true),
            ("https://api.example.com", Some("api.example.com:80"), false),
            ("https://evil.example.com", Some("api.example.com"), false),
            ("https://api.example.com:8443", Some("api.example.com"), false),
            ("https://api.example.com", None, false),
            ("https://", Some(""), false),
            ("null", Some("null"), false),
            ("file://api.example.com", Some("api.example.com"), false),
        ] {
            let host = host.map(str::as_bytes);
            assert_eq!(one.may_act(origin.as_bytes(), host), expected, "{origin} to {host:?}");
        }
        assert!(!every.may_act(b"https://evil.example.com", Some(b"api.example.com")), "`*` lists nobody");
    }
}
