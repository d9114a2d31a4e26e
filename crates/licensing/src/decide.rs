//! The decision: a pure function of what was asked, by whom, on which licence, how much of that is used, in which mode, at
//! what time.

use std::time::Duration;

use crate::enforcement::Mode;
use crate::license::{License, Validity};
use crate::quota::Exhausted;
use crate::reason::Reason;
use crate::tenant::TokenFault;
use crate::time::Timestamp;

/// What the rules demand of a request.
#[derive(Clone, Copy, Debug)]
pub enum Need<'a> {
    /// Nothing: a core module, or a path that no rule names.
    Nothing,
    /// A licence that includes every one of these features; never empty.
    Features(&'a [&'a str]),
    /// What no one has.
    Denied,
    /// The target was refused before any rule was looked for.
    Refused(Reason),
}

/// Who asks and on what licence.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// A tenant with this licence.
    Licensed(&'a License),
    /// A tenant without a licence.
    Unlicensed,
    /// A tenant whose licence no store can tell; `allow` is what `on_failure` makes of it.
    Unknown {
        /// Whether the request is let through.
        allow: bool,
    },
    /// No tenant; `allow` is what `tenant.missing` makes of it.
    NoTenant {
        /// Whether the request is let through.
        allow: bool,
    },
    /// What names the tenant names none, or several.
    InvalidTenant,
    /// A token that should name the tenant is not to be believed. Where a feature is needed it is refused even if requests
    /// without a tenant pass: a client that has one must hear that it is of no use.
    BadToken(TokenFault),
}

/// Whether the limits of a licence leave room for one request more. Only hard limits of metered features matter: beyond a
/// soft one a request is within, and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance<'a> {
    /// They do, or there are none.
    Within,
    /// One of them is used up.
    Exhausted {
        /// Of which feature.
        feature: &'a str,
        /// The limit.
        exhausted: Exhausted,
    },
    /// There is a limit, and no store can tell how much of it is left; `allow` is what `on_failure` makes of it.
    Unknown {
        /// Of which feature.
        feature: &'a str,
        /// Whether the request is let through.
        allow: bool,
    },
}

/// What became of a request, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision<'a> {
    /// It goes on.
    Allow {
        /// Set where only the grace period lets it through: when that ends.
        grace_until: Option<Timestamp>,
    },
    /// It goes on, though it would be refused once its tenant is enforced.
    Shadow(Denial<'a>),
    /// It is answered here.
    Deny(Denial<'a>),
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denial<'a> {
    /// Why.
    pub reason: Reason,
    /// The feature that was asked for, where one is concerned.
    pub feature: Option<&'a str>,
    /// The licence that was not enough, where there is one.
    pub license: Option<&'a License>,
    /// What is wrong with the token that should have named the tenant, where that is the reason.
    pub token: Option<TokenFault>,
    /// The limit that is used up, where that is the reason.
    pub usage: Option<Exhausted>,
}

/// Decide. `grace` is how long past its end an `auto_renew` licence is served.
///
/// Refusals come in the order in which a client can act on them: first the path, then the tenant, then the licence as a
/// whole, then the feature, and last how much of it is used: who has not got a feature is not told of its limit. So
/// `allowance` has to be known only of what passes with [`Allowance::Within`]. `Mode::Off` looks at no licence and no limit,
/// but what is wrong with path or tenant is still reported, as a shadow denial, so that a roll-out starts with clean logs.
pub fn decide<'a>(
    need: Need<'a>,
    standing: Standing<'a>,
    allowance: Allowance<'a>,
    mode: Mode,
    grace: Duration,
    now: Timestamp,
) -> Decision<'a> {
    let outcome = match need {
        Need::Nothing => Ok(None),
        Need::Denied => Err(Denial::without_license(Reason::RouteDenied)),
        Need::Refused(reason) => Err(Denial::without_license(reason)),
        Need::Features(features) => licensed(features, standing, allowance, mode, grace, now),
    };
    match outcome {
        Ok(grace_until) => Decision::Allow { grace_until },
        Err(denial) if mode == Mode::Enforce => Decision::Deny(denial),
        Err(denial) => Decision::Shadow(denial),
    }
}

impl Denial<'_> {
    /// For what has nothing to do with a licence.
    const fn without_license(reason: Reason) -> Self {
        Self { reason, feature: None, license: None, token: None, usage: None }
    }
}

/// `Ok` with the end of a grace period that is being drawn on, if one is.
fn licensed<'a>(
    features: &'a [&'a str],
    standing: Standing<'a>,
    allowance: Allowance<'a>,
    mode: Mode,
    grace: Duration,
    now: Timestamp,
) -> Result<Option<Timestamp>, Denial<'a>> {
    let first = features.first().copied();
    let denial = |reason, feature, license| Denial { feature, license, ..Denial::without_license(reason) };
    let license = match standing {
        Standing::InvalidTenant => return Err(denial(Reason::TenantInvalid, first, None)),
        Standing::BadToken(fault) => {
            return Err(Denial { token: Some(fault), ..denial(Reason::TenantMissing, first, None) });
        }
        Standing::NoTenant { allow: true } => return Ok(None),
        Standing::NoTenant { allow: false } => return Err(denial(Reason::TenantMissing, first, None)),
        _ if mode == Mode::Off => return Ok(None),
        Standing::Unknown { allow: true } => return Ok(None),
        Standing::Unknown { allow: false } => return Err(denial(Reason::StoreUnavailable, first, None)),
        Standing::Unlicensed => return Err(denial(Reason::NoLicense, first, None)),
        Standing::Licensed(license) => license,
    };
    let grace_until = match license.validity(grace, now) {
        Validity::Valid => None,
        Validity::Grace { until } => Some(until),
        Validity::NotYet => return Err(denial(Reason::LicenseNotYetValid, first, Some(license))),
        Validity::Expired => return Err(denial(Reason::LicenseExpired, first, Some(license))),
    };
    if let Some(feature) = features.iter().find(|feature| !license.includes(feature, now)) {
        return Err(denial(Reason::FeatureNotInPlan, Some(feature), Some(license)));
    }
    match allowance {
        Allowance::Within | Allowance::Unknown { allow: true, .. } => Ok(grace_until),
        Allowance::Exhausted { feature, exhausted } => {
            let denial = denial(Reason::UsageLimitExceeded, Some(feature), Some(license));
            Err(Denial { usage: Some(exhausted), ..denial })
        }
        Allowance::Unknown { feature, allow: false } => {
            Err(denial(Reason::StoreUnavailable, Some(feature), Some(license)))
        }
    }
}

#[cfg(test)]
mod tests;
