//! Who follows the way from a denial to an upgrade: told by the frontend, or seen on its way to the page.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use licensing::answer::{Answer, Failure};
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use serde::Deserialize;

use super::body;
use super::license::{Basis, Call, Reply, refuse};
use crate::clock::wall_clock;
use crate::record::Recorder;
use crate::snapshot::Snapshot;

/// What says that nobody has clicked yet: a browser or a page that guesses what will be looked at.
const PREFETCH: [HeaderName; 4] = [
    HeaderName::from_static("sec-purpose"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("x-purpose"),
    HeaderName::from_static("x-moz"),
];

/// Marks denials as followed.
#[derive(Clone)]
pub(crate) struct Clicks {
    recorder: Arc<Recorder>,
}

/// The body.
#[derive(Deserialize)]
struct Click {
    feature: String,
}

impl Clicks {
    /// Mark what `recorder` has counted.
    pub(crate) fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder }
    }

    /// The frontend says that a person follows the way to an upgrade. `body`: none if it is too large.
    pub(crate) fn told(&self, call: &Call<'_>, body: Option<&[u8]>) -> Reply {
        self.try_told(call, body).unwrap_or_else(|refused| refused)
    }

    fn try_told(&self, call: &Call<'_>, body: Option<&[u8]>) -> Result<Reply, Reply> {
        let tenant = call.tenant()?;
        let body = body.ok_or_else(|| call.fail(Failure::BodyTooLarge))?;
        let click: Click = body::read(body).map_err(|_| call.fail(Failure::ClickInvalid))?;
        // Others are denied to nobody, so there is nothing to mark.
        let feature = call.snapshot.features.named(&click.feature).ok_or_else(|| call.fail(Failure::FeatureUnknown))?;
        if !self.recorder.clicked(tenant, feature, wall_clock()) {
            tracing::warn!(request_id = call.request_id, "too many clicks wait to be written down");
            return Err(refuse(call, Reason::StoreUnavailable));
        }
        Ok(Reply { answer: Answer::done(call.request_id), basis: Basis::default() })
    }

    /// A request of `tenant` is forwarded: if it follows the link of a denial, that is written down behind it.
    pub(crate) fn seen(&self, tenant: TenantId, snapshot: &Snapshot, host: Option<&[u8]>, raw_target: &[u8]) {
        for feature in snapshot.upgrade_links.followed(host, raw_target) {
            if !self.recorder.clicked(tenant, feature, wall_clock()) {
                tracing::debug!("too many clicks wait to be written down");
            }
        }
    }
}

/// Whether a page is fetched in case that somebody goes there (Speculation Rules, section "Sec-Purpose"; older browsers and
/// libraries say so by other names).
pub(crate) fn is_prefetch(headers: &HeaderMap) -> bool {
    let tells = |value: &http::HeaderValue| {
        let value = value.as_bytes().to_ascii_lowercase();
        [&b"prefetch"[..], b"prerender", b"preview"].iter().any(|word| memchr::memmem::find(&value, word).is_some())
    };
    PREFETCH.iter().any(|name| headers.get_all(name).iter().any(tells))
}
