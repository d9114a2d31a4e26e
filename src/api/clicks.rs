//! Who follows the way from a denial to an upgrade: told by the frontend, or seen on its way to the page.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use licensing::answer::{Answer, Failure};
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use moka::sync::Cache;
use serde::Deserialize;

use super::body;
use super::license::{Basis, Call, Reply, refuse};
use crate::clock::wall_clock;
use crate::record::Recorder;
use crate::snapshot::Snapshot;

/// One click of a person is often several requests. What follows so soon tells nothing new.
const QUIET: Duration = Duration::from_secs(2);

/// How many are remembered for that long.
const REMEMBERED: u64 = 10_000;

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
    recent: Cache<(TenantId, Arc<str>), ()>,
}

/// The body.
#[derive(Deserialize)]
struct Click {
    feature: String,
}

impl Clicks {
    /// Mark what `recorder` has counted.
    pub(crate) fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, recent: Cache::builder().max_capacity(REMEMBERED).time_to_live(QUIET).build() }
    }

    /// The frontend says that a person follows the way to an upgrade. `body`: none if it is too large.
    pub(crate) async fn told(&self, call: &Call<'_>, body: Option<&[u8]>) -> Reply {
        self.try_told(call, body).await.unwrap_or_else(|refused| refused)
    }

    async fn try_told(&self, call: &Call<'_>, body: Option<&[u8]>) -> Result<Reply, Reply> {
        let tenant = call.tenant()?;
        let body = body.ok_or_else(|| call.fail(Failure::BodyTooLarge))?;
        let click: Click = body::read(body).map_err(|_| call.fail(Failure::ClickInvalid))?;
        // Others are denied to nobody, so there is nothing to mark.
        let feature = call.snapshot.features.named(&click.feature).ok_or_else(|| call.fail(Failure::FeatureUnknown))?;
        if self.is_news(tenant, feature)
            && let Err(error) = self.recorder.clicked(tenant, feature, wall_clock()).await
        {
            self.recent.invalidate(&(tenant, Arc::clone(feature)));
            tracing::warn!(request_id = call.request_id, %error, "a click can't be written down");
            return Err(refuse(call, Reason::StoreUnavailable));
        }
        Ok(Reply { answer: Answer::done(call.request_id), basis: Basis::default() })
    }

    /// A request of `tenant` is forwarded: if it follows the link of a denial, that is written down behind it.
    pub(crate) fn seen(&self, tenant: TenantId, snapshot: &Snapshot, host: Option<&[u8]>, raw_target: &[u8]) {
        for feature in snapshot.upgrade_links.followed(host, raw_target) {
            if self.is_news(tenant, feature) {
                self.recorder.clicked_behind(tenant, Arc::clone(feature), wall_clock());
            }
        }
    }

    fn is_news(&self, tenant: TenantId, feature: &Arc<str>) -> bool {
        self.recent.entry((tenant, Arc::clone(feature))).or_insert(()).is_fresh()
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
