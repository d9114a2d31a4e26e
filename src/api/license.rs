//! The licence API: a tenant's licence as JSON. Nothing of what is enforced depends on it, nor it on what is enforced.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use licensing::answer::{Answer, Failure, Format};
use licensing::config::Window;
use licensing::decide::Denial;
use licensing::license::License;
use licensing::quota::Period;
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use licensing::view::{View, entity_tag, none_match_names};

use crate::clock::wall_clock;
use crate::gate::{Identity, Policy};
use crate::licenses::{Entry, Found, Layer, Licenses, Watch};
use crate::record::{Recorder, UsageReader};
use crate::snapshot::Snapshot;
use crate::stores::Since;

/// What the licence API is served from.
pub(crate) struct LicenseApi {
    licenses: Arc<Licenses>,
    used: UsageReader,
    recorder: Arc<Recorder>,
}

/// A request to it, as far as its answer depends on that.
pub(crate) struct Call<'a> {
    /// Who asks.
    pub(crate) identity: Identity,
    /// By which configuration it is answered.
    pub(crate) snapshot: &'a Snapshot,
    /// The values of `If-None-Match`.
    pub(crate) none_match: Vec<HeaderValue>,
    /// The request headers that say who asks, for `Vary`.
    pub(crate) vary: &'a str,
    /// The request's id.
    pub(crate) request_id: &'a str,
    /// What the client can read, if it is refused.
    pub(crate) format: Format,
}

/// The answer, and what the access log says of it.
pub(crate) struct Reply {
    /// The answer.
    pub(crate) answer: Answer,
    /// What it was made of.
    pub(crate) basis: Basis,
}

/// What an answer of the licence API was made of.
#[derive(Debug, Default)]
pub(crate) struct Basis {
    /// Why it is a refusal.
    pub(crate) reason: Option<Reason>,
    /// The licence.
    pub(crate) entry: Option<Arc<Entry>>,
    /// Where that came from.
    pub(crate) layer: Option<Layer>,
}

/// A tenant's licence, or that there is none, which is worth knowing too.
pub(crate) type Held = Option<Arc<Entry>>;

impl LicenseApi {
    /// Serve what these know.
    pub(crate) fn new(licenses: Arc<Licenses>, used: UsageReader, recorder: Arc<Recorder>) -> Self {
        Self { licenses, used, recorder }
    }

    /// GET: the licence, or that the client has it already.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Reply {
        let tenant = match call.tenant() {
            Ok(tenant) => tenant,
            Err(refused) => return refused,
        };
        let (entry, layer) = match self.held(tenant).await {
            Ok((Some(entry), layer)) => (entry, layer),
            Ok((None, _)) => return refuse(call, Reason::NoLicense),
            Err(reason) => return refuse(call, reason),
        };
        let document = self.document(tenant, &entry.license, call.snapshot).await;
        let tag = entity_tag(document.as_bytes());
        Reply { answer: call.document(document, tag), basis: Basis { reason: None, entry: Some(entry), layer } }
    }

    /// What `tenant` holds, last known perhaps, and where that came from.
    ///
    /// # Errors
    /// When no store can tell.
    pub(crate) async fn held(&self, tenant: TenantId) -> Result<(Held, Option<Layer>), Reason> {
        // As the gate does it.
        let look_up = match self.licenses.peek(tenant, Instant::now()) {
            Some(look_up) => look_up,
            None => self.licenses.ask(tenant).await.0,
        };
        match look_up.found {
            Found::License(entry) | Found::Stale(entry) => Ok((Some(entry), look_up.layer)),
            Found::Nothing => Ok((None, look_up.layer)),
            Found::Failed { .. } => Err(Reason::StoreUnavailable),
        }
    }

    /// Be told when that changes.
    pub(crate) fn watch(&self, tenant: TenantId) -> Watch {
        self.licenses.watch(tenant)
    }

    /// A licence's document as of now, with what was used of it.
    pub(crate) async fn document(&self, tenant: TenantId, license: &License, snapshot: &Snapshot) -> String {
        let since = self.since(tenant, snapshot).await;
        let usage = self.used.of(tenant, &since, self.licenses.source_answers()).await;
        View::new(license, snapshot.policy.grace, usage.as_deref(), wall_clock()).to_json()
    }

    /// The days on which the current periods of a tenant's features began.
    async fn since(&self, tenant: TenantId, snapshot: &Snapshot) -> Since {
        let now = wall_clock();
        let until = tokio::time::Instant::now() + self.recorder.deadline();
        let mut of = Vec::new();
        for (feature, window) in snapshot.features.metered() {
            let anchor = match window {
                // Where it is not known, the month has to do.
                Window::Anchored => self.recorder.anchor(tenant, until).await.ok(),
                Window::Day | Window::Month | Window::Lifetime => None,
            };
            of.extend(Period::of(window, anchor, now).map(|period| (Arc::clone(feature), period.start)));
        }
        Since { day: now.day().first_of_month(), of }
    }
}

impl Call<'_> {
    /// A document with its entity tag, or that the client has it already.
    pub(crate) fn document(&self, document: String, tag: String) -> Answer {
        let is_known = self.none_match.iter().any(|value| none_match_names(value.as_bytes(), &tag));
        Answer::document((!is_known).then_some(document), tag, self.vary, self.request_id)
    }

    /// Say what is wrong with the request.
    pub(crate) fn fail(&self, failure: Failure) -> Reply {
        let answer = self.snapshot.policy.answers.failure(failure, self.request_id, self.format);
        Reply { answer, basis: Basis::default() }
    }

    /// Whose licence it is about.
    ///
    /// # Errors
    /// With the refusal, when that can't be told.
    pub(crate) fn tenant(&self) -> Result<TenantId, Reply> {
        let reason = match self.identity {
            Identity::Tenant(tenant) => return Ok(tenant),
            Identity::Missing | Identity::BadToken(_) => Reason::TenantMissing,
            Identity::Invalid | Identity::Conflicting => Reason::TenantInvalid,
        };
        Err(refuse(self, reason))
    }
}

/// Say why the licence is not shown.
pub(crate) fn refuse(call: &Call<'_>, reason: Reason) -> Reply {
    let Policy { answers, plans, .. } = &call.snapshot.policy;
    let token = match call.identity {
        Identity::BadToken(fault) => Some(fault),
        _ => None,
    };
    let denial = Denial { reason, feature: None, license: None, token, usage: None };
    let answer = answers.denial(&denial, plans, wall_clock(), call.request_id, call.format);
    Reply { answer, basis: Basis { reason: Some(reason), ..Basis::default() } }
}
