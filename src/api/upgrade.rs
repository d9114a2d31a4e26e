//! Upgrades: a tenant's own people buy another plan, or ask for it.

use std::sync::Arc;

use http::HeaderMap;
use licensing::amend::{Command, Refused};
use licensing::answer::{Answer, Failure};
use licensing::config::UpgradeMode;
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use licensing::view::entity_tag;
use serde::Deserialize;

use super::body;
use super::headers::idempotency_key;
use super::license::{Basis, Call, LicenseApi, Reply, refuse};
use crate::manage::{Author, Manage, ManageError};

/// The longest name of a plan, as `tenant_licenses.plan_tier` has it: what is longer is not even written down as refused.
const MAX_PLAN_BYTES: usize = 50;

/// What an upgrade is made by.
#[derive(Clone)]
pub(crate) struct UpgradeApi {
    /// None: licences can't be written here.
    manage: Option<Arc<Manage>>,
    licenses: Arc<LicenseApi>,
}

/// A request for an upgrade, as it came.
pub(crate) struct Asked<'a> {
    pub(crate) call: Call<'a>,
    /// Whether whoever asks has a role that may.
    pub(crate) may_upgrade: bool,
    /// Who asks, for the audit.
    pub(crate) actor: String,
    pub(crate) mode: UpgradeMode,
    /// Whether a cheaper plan may be chosen.
    pub(crate) downgrade: bool,
    pub(crate) headers: &'a HeaderMap,
    /// The body; none if it is too large.
    pub(crate) body: Option<&'a [u8]>,
}

/// The body.
#[derive(Deserialize)]
struct Wish {
    new_plan: String,
}

impl UpgradeApi {
    /// Upgrade by `manage`, and answer with the document that `licenses` gives.
    pub(crate) fn new(manage: Option<Arc<Manage>>, licenses: Arc<LicenseApi>) -> Self {
        Self { manage, licenses }
    }

    /// Whether whoever asks may, as far as that is known before the body is read.
    ///
    /// # Errors
    /// With the refusal.
    pub(crate) fn admit(&self, call: &Call<'_>, may_upgrade: bool) -> Result<TenantId, Reply> {
        let tenant = call.tenant()?;
        match may_upgrade {
            true => Ok(tenant),
            false => Err(call.fail(Failure::RoleNotAllowed)),
        }
    }

    /// Do it, or write down that it is wanted.
    pub(crate) async fn upgrade(&self, asked: &Asked<'_>) -> Reply {
        self.try_upgrade(asked).await.unwrap_or_else(|refused| refused)
    }

    async fn try_upgrade(&self, asked: &Asked<'_>) -> Result<Reply, Reply> {
        let Asked { call, .. } = asked;
        let tenant = self.admit(call, asked.may_upgrade)?;
        let wish: Wish = {
            let body = asked.body.ok_or_else(|| call.fail(Failure::BodyTooLarge))?;
            body::read(body).map_err(|_| call.fail(Failure::BodyInvalid))?
        };
        if wish.new_plan.len() > MAX_PLAN_BYTES {
            return Err(call.fail(Failure::BodyInvalid));
        }
        let author = asked.author()?;
        let command = Command::Upgrade {
            plan: wish.new_plan.clone(),
            downgrade: asked.downgrade,
            grace: call.snapshot.policy.grace,
        };
        let Some(manage) = &self.manage else { return Err(refuse(call, Reason::StoreUnavailable)) };
        let failed = |error| self.failed(call, error);
        match asked.mode {
            UpgradeMode::Apply => {
                let amended = manage.amend(tenant, &command, &author).await.map_err(failed)?;
                let Some(license) = &amended.after.license else { return Err(refuse(call, Reason::NoLicense)) };
                let document = self.licenses.document(tenant, license, call.snapshot).await;
                let tag = entity_tag(document.as_bytes());
                let answer = Answer::document(Some(document), tag, call.vary, call.request_id);
                Ok(Reply { answer, basis: Basis::default() })
            }
            UpgradeMode::Request => {
                manage.request_upgrade(tenant, &command, &author).await.map_err(failed)?;
                let answer = Answer::requested(&wish.new_plan, call.request_id);
                Ok(Reply { answer, basis: Basis::default() })
            }
        }
    }

    fn failed(&self, call: &Call<'_>, error: ManageError) -> Reply {
        let answers = &call.snapshot.policy.answers;
        match error {
            ManageError::Refused { refused: Refused::NoLicense, .. } => refuse(call, Reason::NoLicense),
            ManageError::Refused { refused: Refused::LicenseExpired, .. } => refuse(call, Reason::LicenseExpired),
            ManageError::Refused { refused, message } => {
                let answer = answers.change_refused(refused, message, call.request_id, call.format);
                Reply { answer, basis: Basis::default() }
            }
            ManageError::KeyReused => call.fail(Failure::IdempotencyKeyReused),
            ManageError::Unknown(error) => {
                tracing::error!(request_id = call.request_id, error, "an upgrade may have been made or not");
                call.fail(Failure::OutcomeUnknown)
            }
            ManageError::Store(error) => {
                tracing::warn!(request_id = call.request_id, %error, "an upgrade can't be made now");
                refuse(call, Reason::StoreUnavailable)
            }
        }
    }
}

impl Asked<'_> {
    fn author(&self) -> Result<Author, Reply> {
        let key = idempotency_key(self.headers).map_err(|()| self.call.fail(Failure::IdempotencyKeyInvalid))?;
        Ok(Author {
            actor: self.actor.clone(),
            reason: Some("upgrade by the tenant".to_owned()),
            request_id: Some(self.call.request_id.to_owned()),
            idempotency_key: key.map(str::to_owned),
        })
    }
}
