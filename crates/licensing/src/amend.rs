//! Changes of a licence: pure functions of what a tenant holds, what is asked for, what is sold, and the time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::license::{Features, License, Validity};
use crate::plans::{Plan, Plans};
use crate::quota::Limit;
use crate::tenant::TenantId;
use crate::time::Timestamp;

/// How long a licence holds that is created without an end: as long as one that plain SQL creates.
pub const DEFAULT_TERM: Duration = Duration::from_hours(30 * 24);

/// All that a tenant has.
///
/// What it may use is in the licence alone. Add-ons say which part of that is its own whatever becomes of the plan, and until
/// when. Each add-on in the list is worked into the licence already; those that have ended leave both with the next change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holding {
    /// Its licence, if it has one.
    pub license: Option<License>,
    /// What it has beside its plan, one a feature, in alphabetical order.
    #[serde(default)]
    pub addons: Vec<Addon>,
}

/// A feature that a tenant has beside its plan: a trial, break-glass, or sold by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Addon {
    /// The feature.
    pub feature: Arc<str>,
    /// What it adds to the feature's limit. Where the plan does not include the feature, this is the limit; none: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_delta: Option<i64>,
    /// Until when it is there; the instant itself is outside.
    pub valid_until: Timestamp,
    /// Why it was granted, as whoever did it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Command {
    /// Another plan, or a first licence. What the licence includes is the plan and the add-ons from then on.
    SetPlan {
        /// The plan.
        plan: String,
        /// Until when the licence holds. None: as long as it does already; a new one for [`DEFAULT_TERM`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        valid_until: Option<Timestamp>,
    },
    /// Another plan for a licence that is there, as its own tenant asks for it.
    Upgrade {
        /// The plan.
        plan: String,
        /// Whether it may be a cheaper one: by configuration, and hence no part of what is asked for.
        #[serde(skip)]
        downgrade: bool,
        /// How long past its end a licence with `auto_renew` is served; likewise.
        #[serde(skip)]
        grace: Duration,
    },
    /// One feature more, by an add-on. It survives changes of the plan. A grant that is there is never shortened.
    Grant {
        /// The feature.
        feature: String,
        /// See [`Addon::limit_delta`]. None: as it is, where it is granted already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_delta: Option<i64>,
        /// When it ends; counted from now. Infinity is for good.
        #[serde(flatten)]
        end: End,
    },
    /// One feature less, its add-on included. If the plan gives the feature, the licence differs from its plan from then on;
    /// [`Command::Reapply`] and a change of the plan bring it back.
    Revoke {
        /// The feature.
        feature: String,
    },
    /// A later end of the licence.
    Extend {
        /// When it ends; counted from its present end, or from now if that has passed.
        #[serde(flatten)]
        end: End,
    },
    /// What the licence includes is its plan, as it is sold today, and the add-ons; nothing that plain SQL has put there
    /// remains.
    #[serde(rename = "reapply_plan")]
    Reapply,
    /// What has ended is forgotten. It was not in force any more, so nothing else changes: see [`Command::is_housekeeping`].
    #[serde(rename = "addon_ended")]
    Tidy,
}

/// When something ends. What is asked for again by the same idempotency key is the same span, whatever the time is by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// At this time.
    #[serde(rename = "until")]
    At(Timestamp),
    /// After so many seconds.
    InSeconds(u64),
}

impl End {
    /// After `span`, in whole seconds.
    pub const fn after(span: Duration) -> Self {
        Self::InSeconds(span.as_secs())
    }

    /// The time, if spans are counted from `begin`.
    fn from(self, begin: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::InSeconds(seconds) => begin.plus(Duration::from_secs(seconds)),
        }
    }
}

/// Why a change is refused. The names are part of the public contract: answers and the audit use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// No plan of that name is sold.
    UnknownPlan,
    /// No plan and no rule names that feature.
    UnknownFeature,
    /// The tenant has that plan.
    SamePlan,
    /// The plan is cheaper than the tenant's.
    DowngradeNotAllowed,
    /// The tenant has no licence.
    NoLicense,
    /// The tenant's licence has ended: another plan would not make it hold.
    LicenseExpired,
    /// The tenant has not got that feature.
    NotGranted,
    /// The feature is granted until later already.
    GrantedLonger,
    /// The licence holds until then already, or for longer.
    ValidLonger,
    /// That time has passed.
    InThePast,
}

impl Command {
    /// As the audit names it.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::SetPlan { .. } => "set_plan",
            Self::Upgrade { .. } => "upgrade",
            Self::Grant { .. } => "grant",
            Self::Revoke { .. } => "revoke",
            Self::Extend { .. } => "extend",
            Self::Reapply => "reapply_plan",
            Self::Tidy => "addon_ended",
        }
    }

    /// Whether nobody has asked for it in particular, so that it is worth no line in the audit where it changes nothing.
    pub const fn is_housekeeping(&self) -> bool {
        matches!(self, Self::Tidy)
    }
}

/// What `tenant` holds after `command`. Add-ons that have ended are gone afterwards, and features that have.
///
/// A change of the plan moves neither the licence's validity nor `auto_renew`, unless it is asked to. The revision stays: it
/// is the store that counts.
///
/// # Errors
/// When it is refused: then nothing changes.
pub fn amend(
    tenant: TenantId,
    holding: &Holding,
    command: &Command,
    plans: &Plans,
    now: Timestamp,
) -> Result<Holding, Refused> {
    let mut after = holding.clone();
    after.tidy(plans, now);
    match command {
        Command::SetPlan { plan, valid_until } => {
            let plan = plans.get(plan).ok_or(Refused::UnknownPlan)?;
            let end = valid_until.or(after.license.is_none().then(|| now.plus(DEFAULT_TERM)));
            let license = after.license.get_or_insert_with(|| first_license(tenant, now));
            if let Some(end) = end {
                // One that holds already may be ended.
                if end <= license.valid_from || (holding.license.is_none() && end <= now) {
                    return Err(Refused::InThePast);
                }
                license.valid_until = end;
            }
            after.follow(plan);
        }
        Command::Upgrade { plan, downgrade, grace } => {
            let wanted = plans.get(plan).ok_or(Refused::UnknownPlan)?;
            let license = after.license.as_ref().ok_or(Refused::NoLicense)?;
            if license.validity(*grace, now) == Validity::Expired {
                return Err(Refused::LicenseExpired);
            }
            if *license.plan == *wanted.name {
                return Err(Refused::SamePlan);
            }
            // What is not sold any more has no place in the order.
            let cheaper = plans.rank(&license.plan).is_some_and(|rank| plans.rank(plan) < Some(rank));
            if cheaper && !downgrade {
                return Err(Refused::DowngradeNotAllowed);
            }
            after.follow(wanted);
        }
        Command::Grant { feature, limit_delta, end } => {
            after.grant(feature, *limit_delta, end.from(now), plans, now)?;
        }
        Command::Revoke { feature } => after.revoke(feature, plans)?,
        Command::Extend { end } => {
            let license = after.license.as_mut().ok_or(Refused::NoLicense)?;
            let until = end.from(license.valid_until.max(now));
            if until <= license.valid_until {
                return Err(Refused::ValidLonger);
            }
            if until <= now {
                return Err(Refused::InThePast);
            }
            license.valid_until = until;
        }
        Command::Reapply => {
            let license = after.license.as_ref().ok_or(Refused::NoLicense)?;
            let plan = plans.get(&license.plan).ok_or(Refused::UnknownPlan)?;
            after.follow(plan);
        }
        Command::Tidy => {}
    }
    Ok(after)
}

fn first_license(tenant: TenantId, now: Timestamp) -> License {
    License {
        tenant,
        plan: "".into(),
        features: Features::default(),
        features_until: BTreeMap::new(),
        usage_limits: Map::new(),
        valid_from: now,
        valid_until: now,
        auto_renew: true,
        revision: 0,
    }
}

impl Holding {
    /// The add-on of `feature`, if there is one.
    pub fn addon(&self, feature: &str) -> Option<&Addon> {
        self.addons.iter().find(|addon| &*addon.feature == feature)
    }

    /// Forget what has ended: nothing that is in force at `now` changes.
    fn tidy(&mut self, plans: &Plans, now: Timestamp) {
        let ended: Vec<Addon> = self.addons.extract_if(.., |addon| addon.valid_until <= now).collect();
        let Some(license) = &mut self.license else { return };
        if license.features_until.values().any(|end| *end <= now) {
            license.features = license.features_at(now).collect();
            license.features_until.retain(|_, end| now < *end);
        }
        for addon in ended {
            license.adjust_limit(&addon.feature, Some(&addon), None, plans);
        }
    }

    /// What the licence includes is `plan` and the add-ons, each of which is in force.
    fn follow(&mut self, plan: &Plan) {
        let Some(license) = &mut self.license else { return };
        license.plan = Arc::clone(&plan.name);
        let features = plan.features.iter().chain(self.addons.iter().map(|addon| &addon.feature));
        license.features = features.map(|feature| &**feature).collect();
        let of_addons = self.addons.iter().filter(|addon| !plan.includes(&addon.feature));
        let ends = of_addons.filter(|addon| addon.valid_until != Timestamp::INFINITY);
        license.features_until = ends.map(|addon| (Box::from(&*addon.feature), addon.valid_until)).collect();
        license.usage_limits =
            plan.limits.iter().map(|(feature, limit)| (feature.to_string(), (*limit).into())).collect();
        for addon in &self.addons {
            license.set_limit(&addon.feature, base_limit(plan, &addon.feature), Some(addon));
        }
    }

    fn grant(
        &mut self,
        feature: &str,
        limit_delta: Option<i64>,
        until: Timestamp,
        plans: &Plans,
        now: Timestamp,
    ) -> Result<(), Refused> {
        if !plans.know(feature) {
            return Err(Refused::UnknownFeature);
        }
        let license = self.license.as_mut().ok_or(Refused::NoLicense)?;
        if until <= now {
            return Err(Refused::InThePast);
        }
        let place = self.addons.binary_search_by(|addon| (*addon.feature).cmp(feature));
        let before = place.ok().map(|place| self.addons[place].clone());
        if before.as_ref().is_some_and(|before| until < before.valid_until) {
            return Err(Refused::GrantedLonger);
        }
        let limit_delta = limit_delta.or(before.as_ref().and_then(|before| before.limit_delta));
        let addon = Addon { feature: feature.into(), limit_delta, valid_until: until, reason: None };
        license.adjust_limit(feature, before.as_ref(), Some(&addon), plans);
        // What is included for good, by the plan or by plain SQL, stays so.
        if !license.features.contains(feature) || license.features_until.contains_key(feature) {
            license.features = license.features.iter().chain([feature]).collect();
            license.features_until.remove(feature);
            if until != Timestamp::INFINITY {
                license.features_until.insert(feature.into(), until);
            }
        }
        match place {
            Ok(place) => self.addons[place] = addon,
            Err(place) => self.addons.insert(place, addon),
        }
        Ok(())
    }

    fn revoke(&mut self, feature: &str, plans: &Plans) -> Result<(), Refused> {
        let addon = self.addons.extract_if(.., |addon| &*addon.feature == feature).next();
        let Some(license) = &mut self.license else {
            return addon.map(drop).ok_or(Refused::NoLicense);
        };
        if addon.is_none() && !license.features.contains(feature) {
            return Err(Refused::NotGranted);
        }
        license.adjust_limit(feature, addon.as_ref(), None, plans);
        license.features = license.features.iter().filter(|included| *included != feature).collect();
        license.features_until.remove(feature);
        Ok(())
    }
}

impl License {
    /// Work a change of the add-on of `feature` into its limit. Where neither add-on has to do with the limit, it is not
    /// touched: plain SQL may have set it.
    fn adjust_limit(&mut self, feature: &str, before: Option<&Addon>, after: Option<&Addon>, plans: &Plans) {
        let delta = |addon: Option<&Addon>| addon.and_then(|addon| addon.limit_delta);
        if delta(before).is_none() && delta(after).is_none() {
            return;
        }
        let base = match plans.get(&self.plan) {
            Some(plan) => base_limit(plan, feature),
            // What it was without the add-on, since nobody knows any more what the plan said.
            None => match self.limit(feature) {
                Ok(Limit::AtMost(limit)) => {
                    let before = delta(before).unwrap_or_default();
                    Base::Limit(limit.saturating_add_signed(before.saturating_neg()))
                }
                _ if self.features.contains(feature) => Base::Unlimited,
                _ => Base::NotIncluded,
            },
        };
        self.set_limit(feature, base, after);
    }

    fn set_limit(&mut self, feature: &str, base: Base, addon: Option<&Addon>) {
        let limit = match (base, addon) {
            (Base::Unlimited, _) | (Base::NotIncluded, None) => None,
            (Base::Limit(limit), None) => Some(limit),
            (Base::Limit(limit), Some(addon)) => {
                Some(limit.saturating_add_signed(addon.limit_delta.unwrap_or_default()))
            }
            (Base::NotIncluded, Some(addon)) => addon.limit_delta.map(|delta| delta.max(0).unsigned_abs()),
        };
        match limit {
            Some(limit) => self.usage_limits.insert(feature.to_owned(), limit.into()),
            None => self.usage_limits.remove(feature),
        };
    }
}

/// What a plan says of a feature's limit.
#[derive(Clone, Copy)]
enum Base {
    /// It includes the feature without a limit.
    Unlimited,
    /// It limits it.
    Limit(u64),
    /// It does not include it.
    NotIncluded,
}

fn base_limit(plan: &Plan, feature: &str) -> Base {
    match plan.limits.get(feature) {
        Some(limit) => Base::Limit(*limit),
        None if plan.includes(feature) => Base::Unlimited,
        None => Base::NotIncluded,
    }
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::UnknownPlan,
        Self::UnknownFeature,
        Self::SamePlan,
        Self::DowngradeNotAllowed,
        Self::NoLicense,
        Self::LicenseExpired,
        Self::NotGranted,
        Self::GrantedLonger,
        Self::ValidLonger,
        Self::InThePast,
    ];

    /// As answers and the audit name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownPlan => "unknown_plan",
            Self::UnknownFeature => "unknown_feature",
            Self::SamePlan => "same_plan",
            Self::DowngradeNotAllowed => "downgrade_not_allowed",
            Self::NoLicense => "no_license",
            Self::LicenseExpired => "license_expired",
            Self::NotGranted => "not_granted",
            Self::GrantedLonger => "granted_longer",
            Self::ValidLonger => "valid_longer",
            Self::InThePast => "in_the_past",
        }
    }

    /// The HTTP status of an answer that says so (RFC 9110 section 15.5, RFC 4918 section 11.2 for 422).
    pub const fn status(self) -> u16 {
        match self {
            Self::NoLicense => 404,
            Self::LicenseExpired => 402,
            Self::DowngradeNotAllowed => 403,
            Self::SamePlan | Self::NotGranted | Self::GrantedLonger | Self::ValidLonger => 409,
            Self::UnknownPlan | Self::UnknownFeature | Self::InThePast => 422,
        }
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refused| refused.name() == name)
    }

    /// A sentence on why `command` was refused to whoever holds `holding`, for people.
    pub fn explain(self, holding: &Holding, command: &Command, plans: &Plans) -> String {
        let license = holding.license.as_ref();
        let plan = license.map_or("none", |license| &*license.plan);
        let sold = || plans.iter().map(|plan| &*plan.name).collect::<Vec<_>>().join(", ");
        let wanted = match command {
            Command::SetPlan { plan, .. } | Command::Upgrade { plan, .. } => plan,
            Command::Grant { feature, .. } | Command::Revoke { feature } => feature,
            Command::Extend { .. } | Command::Reapply | Command::Tidy => plan,
        };
        match self {
            Self::UnknownPlan => format!("no plan is called {wanted}: there are {}", sold()),
            Self::UnknownFeature => format!("no plan includes {wanted} and no rule asks for it"),
            Self::SamePlan => format!("the tenant has the plan {wanted} already"),
            Self::DowngradeNotAllowed => format!("{wanted} is a cheaper plan than {plan}"),
            Self::NoLicense => "the tenant has no licence: a plan has to be set first".to_owned(),
            Self::LicenseExpired => "the licence has ended: it has to be extended first".to_owned(),
            Self::NotGranted => format!("the tenant has not got {wanted}"),
            Self::GrantedLonger => {
                let until = holding.addon(wanted).map_or(Timestamp::INFINITY, |addon| addon.valid_until);
                format!("{wanted} is granted until {until} already: revoke it first to shorten that")
            }
            Self::ValidLonger => {
                let until = license.map_or(Timestamp::INFINITY, |license| license.valid_until);
                format!("the licence holds until {until} already: to end it earlier, set the plan with that end")
            }
            Self::InThePast => "what is asked for would have ended already".to_owned(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
