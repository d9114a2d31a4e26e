//! Postgres URLs as operators share them between programs, made digestible for tokio-postgres.
//!
//! SQLAlchemy writes `postgresql+asyncpg://`; libpq knows `sslmode=verify-full` and `sslrootcert`; asyncpg says `ssl`. A
//! `DATABASE_URL` that several programs share holds any of these.

use std::str::FromStr;

use tokio_postgres::config::SslMode;
use url::Url;

use super::tls::Verify;

/// A URL that can't be used. The message never holds the URL, which holds a password.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UrlError(pub(super) String);

/// A URL, read.
#[derive(Debug)]
pub(super) struct PostgresUrl {
    pub(super) config: tokio_postgres::Config,
    pub(super) verify: Verify,
    pub(super) ca_file: Option<String>,
}

/// Parameters of other clients that mean nothing to this one and may be passed over without harm.
const IGNORED: [&str; 9] = [
    "gssencmode",
    "krbsrvname",
    "prepared_statement_cache_size",
    "statement_cache_size",
    "prepared_statement_name_func",
    "async_fallback",
    "pool_size",
    "max_overflow",
    "sslsni",
];

impl FromStr for PostgresUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| UrlError("a Postgres URL begins with postgresql://".to_owned()))?;
        let dialect = scheme.split('+').next().unwrap_or_default();
        if !matches!(dialect, "postgres" | "postgresql") {
            return Err(UrlError("a Postgres URL begins with postgresql:// or postgresql+asyncpg://".to_owned()));
        }
        let (base, query) = rest.split_once('?').unwrap_or((rest, ""));

        let mut mode = "prefer".to_owned();
        let mut ca_file = None;
        let mut kept = url::form_urlencoded::Serializer::new(String::new());
        // Only its query is taken from this URL, so any base will do.
        let parsed = Url::parse(&format!("postgresql://ignored/?{query}")).map_err(|e| UrlError(e.to_string()))?;
        for (name, value) in parsed.query_pairs() {
            match &*name {
                "sslmode" | "ssl" => mode = value.into_owned(),
                "sslrootcert" => ca_file = Some(value.into_owned()),
                "sslcert" | "sslkey" => {
                    return Err(UrlError(format!("{name}: client certificates are not supported for Postgres")));
                }
                name if IGNORED.contains(&name) => {}
                _ => {
                    kept.append_pair(&name, &value);
                }
            }
        }

        let (ssl_mode, verify) = match mode.as_str() {
            "disable" | "false" => (SslMode::Disable, Verify::Nothing),
            "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
            // With a root certificate at hand, libpq's `require` checks the authority like `verify-ca`.
            "require" | "true" if ca_file.is_some() => (SslMode::Require, Verify::Authority),
            "require" | "true" => (SslMode::Require, Verify::Nothing),
            "verify-ca" => (SslMode::Require, Verify::Authority),
            "verify-full" => (SslMode::Require, Verify::Full),
            _ => {
                return Err(UrlError(
                    "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full".to_owned(),
                ));
            }
        };
        // `form_urlencoded` writes blanks as `+`, which tokio-postgres would keep.
        let query = kept.finish().replace('+', "%20");
        let mut config = tokio_postgres::Config::from_str(&format!("postgresql://{base}?{query}"))
            .map_err(|error| UrlError(format!("the Postgres URL can't be read: {}", cause(&error))))?;
        config.ssl_mode(ssl_mode);
        if config.get_application_name().is_none() {
            config.application_name("dotmac-license-proxy");
        }
        Ok(Self { config, verify, ca_file })
    }
}

/// What lies at the bottom of an error; its upper layers only say where.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> PostgresUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn both_spellings_and_every_sslmode() {
        for (query, ssl_mode, verify) in [
            ("", SslMode::Prefer, Verify::Nothing),
            ("?sslmode=disable", SslMode::Disable, Verify::Nothing),
            ("?sslmode=require", SslMode::Require, Verify::Nothing),
            ("?ssl=require", SslMode::Require, Verify::Nothing),
            ("?sslmode=require&sslrootcert=/ca.pem", SslMode::Require, Verify::Authority),
            ("?sslmode=verify-ca", SslMode::Require, Verify::Authority),
            ("?sslmode=verify-full&sslrootcert=/ca.pem", SslMode::Require, Verify::Full),
            ("?sslmode=prefer&prepared_statement_cache_size=0", SslMode::Prefer, Verify::Nothing),
        ] {
            for scheme in ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"] {
                let url = read(&format!("{scheme}://app:s%40crt@db.example:6432/main{query}"));
                assert_eq!((url.config.get_ssl_mode(), url.verify), (ssl_mode, verify), "{scheme} {query}");
                assert_eq!(url.config.get_user(), Some("app"));
                assert_eq!(url.config.get_password(), Some(&b"s@crt"[..]));
                assert_eq!(url.config.get_dbname(), Some("main"));
                assert_eq!(url.config.get_ports(), [6432]);
            }
        }
    }

    #[test]
    fn unix_sockets_and_options_are_passed_on() {
        let url = read("postgresql://app@/main?host=/var/run/postgresql&options=-c%20search_path%3Dlicensing");
        assert!(
            matches!(&url.config.get_hosts()[0], tokio_postgres::config::Host::Unix(path) if path.ends_with("postgresql"))
        );
        assert_eq!(url.config.get_options(), Some("-c search_path=licensing"));
    }

    #[test]
    fn refusals_are_sentences_without_the_password() {
        for url in [
            "mysql://app:secret@db/main",
            "app:secret@db",
            "postgresql://app:secret@db/main?sslmode=maybe",
            "postgresql://app:secret@db/main?sslcert=/c.pem",
            "postgresql://app:secret@db:port/main",
            "postgresql://app:secret@db/main?nonsense=1",
        ] {
            let error = url.parse::<PostgresUrl>().expect_err(url).to_string();
            assert!(!error.contains("secret") && error.len() > 20, "{url}: {error}");
        }
    }
}
