use proptest::prelude::*;

use super::*;
use crate::config::Window;
use crate::license::{CLOCK_SKEW, Features};
use crate::quota::{Limit, Period};
use crate::tenant::TenantId;

const DAY: i64 = 86_400_000_000;
const GRACE: Duration = Duration::from_hours(72);
const NOW: Timestamp = Timestamp::from_micros(20_000 * DAY);
const ALL_FEATURES: [&str; 5] = ["crm", "tickets", "projects", "fieldops", "analytics"];
const PLANS: [(&str, &[&str]); 3] = [
    ("starter", &["tickets"]),
    ("professional", &["crm", "tickets", "projects", "analytics"]),
    ("enterprise", &["crm", "tickets", "projects", "fieldops", "analytics"]),
];

fn license(plan: &str, features: &[&str], days: (i64, i64), auto_renew: bool) -> License {
    License {
        tenant: TenantId::new(uuid::Uuid::from_u128(7)),
        plan: plan.into(),
        features: features.iter().copied().collect::<Features>(),
        features_until: std::collections::BTreeMap::new(),
        usage_limits: serde_json::Map::new(),
        valid_from: Timestamp::from_micros(NOW.as_micros() + days.0 * DAY),
        valid_until: Timestamp::from_micros(NOW.as_micros() + days.1 * DAY),
        auto_renew,
        revision: 1,
    }
}

/// The decision where no limit matters.
fn on_license<'a>(features: &'a [&'a str], license: &'a License, mode: Mode, now: Timestamp) -> Decision<'a> {
    decide(Need::Features(features), Standing::Licensed(license), Allowance::Within, mode, GRACE, now)
}

/// This month, of which `used` are used.
fn allowance(feature: &str, limit: Limit, used: u64) -> Allowance<'_> {
    let period = Period::of(Window::Month, None, NOW).expect("a month");
    match limit.exhausted(used, period) {
        Some(exhausted) => Allowance::Exhausted { feature, exhausted },
        None => Allowance::Within,
    }
}

/// A name, the days of validity from now, `auto_renew`, why it is refused, and the day on which its grace ends.
type Validity = (&'static str, (i64, i64), bool, Option<Reason>, Option<i64>);

/// Every plan, every feature, every kind of validity, every mode: what the table in the design says, in full.
#[test]
fn plan_by_feature_by_validity_by_enforcement() {
    let validities: [Validity; 6] = [
        ("valid", (-1, 1), false, None, None),
        ("not yet", (1, 2), false, Some(Reason::LicenseNotYetValid), None),
        ("expired", (-2, -1), false, Some(Reason::LicenseExpired), None),
        ("in grace", (-2, -1), true, None, Some(2)),
        ("past grace", (-9, -4), true, Some(Reason::LicenseExpired), None),
        ("ends now", (-1, 0), false, Some(Reason::LicenseExpired), None),
    ];
    let mut cases = 0;
    for (plan, included) in PLANS {
        for (name, days, auto_renew, invalid, grace_days) in validities {
            let license = license(plan, included, days, auto_renew);
            for feature in ALL_FEATURES {
                for mode in [Mode::Off, Mode::Shadow, Mode::Enforce] {
                    let missing = (!included.contains(&feature)).then_some(Reason::FeatureNotInPlan);
                    let denial = invalid.or(missing).map(|reason| Denial {
                        reason,
                        feature: Some(feature),
                        license: Some(&license),
                        token: None,
                        usage: None,
                    });
                    let grace_until = grace_days.map(|d| Timestamp::from_micros(NOW.as_micros() + d * DAY));
                    let expected = match (mode, denial) {
                        (Mode::Off, _) => Decision::Allow { grace_until: None },
                        (_, None) => Decision::Allow { grace_until },
                        (Mode::Shadow, Some(denial)) => Decision::Shadow(denial),
                        (Mode::Enforce, Some(denial)) => Decision::Deny(denial),
                    };
                    let need = [feature];
                    let decision = on_license(&need, &license, mode, NOW);
                    assert_eq!(decision, expected, "{plan} {feature} {name} {mode:?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 3 * 6 * 5 * 3);
}

/// A feature that ends before the licence does: whatever the mode, at the instant itself it is not there any more.
#[test]
fn a_feature_ends_on_the_dot() {
    let end = |micros: i64| [("crm".into(), Timestamp::from_micros(NOW.as_micros() + micros))].into();
    let denied = Some(Reason::FeatureNotInPlan);
    for (ends_in, asked, expected) in [
        (1, "crm", None),
        (0, "crm", denied),
        (-1, "crm", denied),
        (0, "tickets", None),
        (1, "fieldops", denied),
        (i64::MAX - NOW.as_micros(), "crm", None),
    ] {
        let license = License { features_until: end(ends_in), ..license("any", &["crm", "tickets"], (-1, 1), false) };
        let need = [asked];
        let refused = |mode| match on_license(&need, &license, mode, NOW) {
            Decision::Allow { .. } => None,
            Decision::Shadow(denial) | Decision::Deny(denial) => Some(denial.reason),
        };
        for (mode, expected) in [(Mode::Enforce, expected), (Mode::Shadow, expected), (Mode::Off, None)] {
            assert_eq!(refused(mode), expected, "{asked}, which ends in {ends_in} µs, in {mode:?}");
        }
    }
}

/// What is decided without a licence.
#[test]
fn standings_without_a_licence() {
    let crm = ["crm"];
    let feature = Need::Features(&crm);
    let refused = |need, standing, mode| match decide(need, standing, Allowance::Within, mode, GRACE, NOW) {
        Decision::Allow { .. } => ("allow", None),
        Decision::Shadow(denial) => ("shadow", Some(denial.reason)),
        Decision::Deny(denial) => ("deny", Some(denial.reason)),
    };
    use Mode::{Enforce, Off, Shadow};
    let unknown = |allow| Standing::Unknown { allow };
    let nobody = |allow| Standing::NoTenant { allow };
    let bad_token = Standing::BadToken(crate::tenant::TokenFault::Expired);
    for (need, standing, mode, expected) in [
        (feature, Standing::Unlicensed, Enforce, ("deny", Some(Reason::NoLicense))),
        (feature, Standing::Unlicensed, Shadow, ("shadow", Some(Reason::NoLicense))),
        (feature, Standing::Unlicensed, Off, ("allow", None)),
        (feature, unknown(true), Enforce, ("allow", None)),
        (feature, unknown(false), Enforce, ("deny", Some(Reason::StoreUnavailable))),
        (feature, unknown(false), Shadow, ("shadow", Some(Reason::StoreUnavailable))),
        (feature, nobody(true), Enforce, ("allow", None)),
        (feature, nobody(false), Enforce, ("deny", Some(Reason::TenantMissing))),
        (feature, nobody(false), Off, ("shadow", Some(Reason::TenantMissing))),
        (feature, bad_token, Enforce, ("deny", Some(Reason::TenantMissing))),
        (feature, bad_token, Shadow, ("shadow", Some(Reason::TenantMissing))),
        (Need::Nothing, bad_token, Enforce, ("allow", None)),
        (feature, Standing::InvalidTenant, Enforce, ("deny", Some(Reason::TenantInvalid))),
        (feature, Standing::InvalidTenant, Off, ("shadow", Some(Reason::TenantInvalid))),
        (Need::Nothing, Standing::InvalidTenant, Enforce, ("allow", None)),
        (Need::Nothing, nobody(false), Enforce, ("allow", None)),
        (Need::Denied, Standing::Unlicensed, Enforce, ("deny", Some(Reason::RouteDenied))),
        (Need::Denied, Standing::Unlicensed, Shadow, ("shadow", Some(Reason::RouteDenied))),
        (Need::Refused(Reason::RequestMalformed), nobody(true), Enforce, ("deny", Some(Reason::RequestMalformed))),
        (Need::Refused(Reason::RequestAmbiguous), nobody(true), Off, ("shadow", Some(Reason::RequestAmbiguous))),
    ] {
        assert_eq!(refused(need, standing, mode), expected, "{need:?} {standing:?} {mode:?}");
    }
}

/// What comes of limits, and that all else comes before them.
#[test]
fn limits_come_last() {
    use Mode::{Enforce, Off, Shadow};
    let valid = license("starter", &["tickets", "crm"], (-1, 1), false);
    let ended = license("starter", &["tickets", "crm"], (-2, -1), false);
    let (tickets, both, sms) = (["tickets"], ["crm", "tickets"], ["tickets", "sms"]);
    let used_up = allowance("tickets", Limit::AtMost(100), 100);
    let nothing = allowance("tickets", Limit::AtMost(0), 0);
    let unknown = |allow| Allowance::Unknown { feature: "tickets", allow };
    let licensed = Standing::Licensed(&valid);
    let exceeded = Some((Reason::UsageLimitExceeded, Some("tickets"), Some((100, 100))));
    let of_nothing = Some((Reason::UsageLimitExceeded, Some("tickets"), Some((0, 0))));
    let untold = Some((Reason::StoreUnavailable, Some("tickets"), None));
    for (features, standing, allowance, mode, word, denial) in [
        (&tickets[..], licensed, allowance("tickets", Limit::AtMost(100), 99), Enforce, "allow", None),
        (&tickets, licensed, allowance("tickets", Limit::Unlimited, u64::MAX), Enforce, "allow", None),
        (&tickets, licensed, used_up, Enforce, "deny", exceeded),
        (&tickets, licensed, used_up, Shadow, "shadow", exceeded),
        (&tickets, licensed, used_up, Off, "allow", None),
        (&both, licensed, used_up, Enforce, "deny", exceeded),
        (&tickets, licensed, nothing, Enforce, "deny", of_nothing),
        (&tickets, licensed, unknown(true), Enforce, "allow", None),
        (&tickets, licensed, unknown(false), Enforce, "deny", untold),
        (&tickets, licensed, unknown(false), Shadow, "shadow", untold),
        (&tickets, licensed, unknown(false), Off, "allow", None),
        // What was to be told before.
        (&sms, licensed, used_up, Enforce, "deny", Some((Reason::FeatureNotInPlan, Some("sms"), None))),
        (&sms, licensed, unknown(false), Enforce, "deny", Some((Reason::FeatureNotInPlan, Some("sms"), None))),
        (
            &tickets,
            Standing::Licensed(&ended),
            used_up,
            Enforce,
            "deny",
            Some((Reason::LicenseExpired, Some("tickets"), None)),
        ),
        (&tickets, Standing::Unlicensed, used_up, Enforce, "deny", Some((Reason::NoLicense, Some("tickets"), None))),
        // Where no licence was looked at, there is no limit either.
        (&tickets, Standing::Unknown { allow: true }, used_up, Enforce, "allow", None),
        (&tickets, Standing::NoTenant { allow: true }, used_up, Enforce, "allow", None),
    ] {
        let decision = decide(Need::Features(features), standing, allowance, mode, GRACE, NOW);
        let said = |denial: Denial<'_>| {
            let licensed = matches!(standing, Standing::Licensed(_));
            assert_eq!(denial.license.is_some(), licensed, "{denial:?}");
            let used = denial.usage.map(|exhausted| (exhausted.limit, exhausted.used));
            (denial.reason, denial.feature.map(str::to_owned), used)
        };
        let found = match decision {
            Decision::Allow { .. } => ("allow", None),
            Decision::Shadow(denial) => ("shadow", Some(said(denial))),
            Decision::Deny(denial) => ("deny", Some(said(denial))),
        };
        let denial =
            denial.map(|(reason, feature, used): (_, Option<&str>, _)| (reason, feature.map(str::to_owned), used));
        assert_eq!(found, (word, denial), "{features:?} {allowance:?} {mode:?}");
    }
    let grace = license("starter", &["tickets"], (-2, -1), true);
    let decision =
        decide(Need::Features(&tickets), Standing::Licensed(&grace), unknown(true), Mode::Enforce, GRACE, NOW);
    assert!(matches!(decision, Decision::Allow { grace_until: Some(_) }), "{decision:?}");
}

fn any_limit() -> impl Strategy<Value = Limit> {
    prop_oneof![Just(Limit::Unlimited), (0..8_u64).prop_map(Limit::AtMost), any::<u64>().prop_map(Limit::AtMost)]
}

fn any_mode() -> impl Strategy<Value = Mode> {
    proptest::sample::select(vec![Mode::Off, Mode::Shadow, Mode::Enforce])
}

fn any_license() -> impl Strategy<Value = License> {
    let features = proptest::sample::subsequence(ALL_FEATURES.to_vec(), 0..=5);
    (features, -10i64..10, -10i64..10, any::<bool>())
        .prop_map(|(features, from, until, renew)| license("any", &features, (from, until), renew))
}

proptest! {
    /// Nobody is let through in `enforce` without every feature that was asked for, at whatever time.
    #[test]
    fn allowed_means_licensed(
        license in any_license(),
        asked in proptest::sample::subsequence(ALL_FEATURES.to_vec(), 1..=5),
        minutes in -20_000i64..20_000,
    ) {
        let now = Timestamp::from_micros(NOW.as_micros() + minutes * 60_000_000);
        let decision = on_license(&asked, &license, Mode::Enforce, now);
        let included = asked.iter().all(|feature| license.features.contains(feature));
        let begun = license.valid_from <= now.plus(CLOCK_SKEW);
        let end = if license.auto_renew { license.valid_until.plus(GRACE) } else { license.valid_until };
        prop_assert_eq!(matches!(decision, Decision::Allow { .. }), included && begun && now < end);
    }

    /// A bigger licence never loses what a smaller one has.
    #[test]
    fn more_features_never_deny_more(license in any_license(), asked in 0usize..5, added in 0usize..5) {
        let need = [ALL_FEATURES[asked]];
        let mut bigger = license.clone();
        bigger.features = license.features.iter().chain([ALL_FEATURES[added]]).collect();
        let allowed = |l: &License| {
            matches!(on_license(&need, l, Mode::Enforce, NOW), Decision::Allow { .. })
        };
        prop_assert!(!allowed(&license) || allowed(&bigger));
    }

    /// Shadow finds exactly what enforce would deny, and never denies.
    #[test]
    fn shadow_predicts_enforce(license in any_license(), asked in 0usize..5) {
        let need = [ALL_FEATURES[asked]];
        let run = |mode| on_license(&need, &license, mode, NOW);
        let same = match (run(Mode::Shadow), run(Mode::Enforce)) {
            (Decision::Allow { grace_until: a }, Decision::Allow { grace_until: b }) => a == b,
            (Decision::Shadow(a), Decision::Deny(b)) => a == b,
            _ => false,
        };
        prop_assert!(same);
    }

    /// Of one feature: who is let through with a limit is let through with a higher one, and who has less used as well.
    #[test]
    fn a_higher_limit_never_denies_more(
        license in any_license(), asked in 0usize..5, limits in (any_limit(), any_limit()), used in (0..10_u64, 0..10_u64)
    ) {
        let need = [ALL_FEATURES[asked]];
        let allowed = |limit, used| {
            let allowance = allowance(need[0], limit, used);
            let decision = decide(Need::Features(&need), Standing::Licensed(&license), allowance, Mode::Enforce, GRACE, NOW);
            matches!(decision, Decision::Allow { .. })
        };
        let height = |limit| match limit {
            Limit::AtMost(limit) => limit,
            Limit::Unlimited => u64::MAX,
        };
        let (lower, higher) = if height(limits.0) <= height(limits.1) { limits } else { (limits.1, limits.0) };
        let (less, more) = (used.0.min(used.1), used.0.max(used.1));
        prop_assert!(!allowed(lower, more) || (allowed(higher, more) && allowed(lower, less)));
    }

    /// A limit denies only what would have passed without it; never in `off`, and in `shadow` nobody hears of it.
    #[test]
    fn a_limit_only_ever_takes_away(
        license in any_license(), asked in 0usize..5, limit in any_limit(), used in 0..10_u64, mode in any_mode()
    ) {
        let need = [ALL_FEATURES[asked]];
        let limited = allowance(need[0], limit, used);
        let decision = decide(Need::Features(&need), Standing::Licensed(&license), limited, mode, GRACE, NOW);
        let without = on_license(&need, &license, mode, NOW);
        let (Decision::Shadow(denial) | Decision::Deny(denial)) = decision else {
            prop_assert_eq!(decision, without);
            return Ok(());
        };
        prop_assert!(mode != Mode::Off);
        prop_assert_eq!(matches!(decision, Decision::Deny(_)), mode == Mode::Enforce);
        if denial.reason == Reason::UsageLimitExceeded {
            prop_assert!(matches!(without, Decision::Allow { .. }), "{:?}", without);
            let exhausted = denial.usage.expect("the limit");
            prop_assert!(exhausted.used >= exhausted.limit);
        } else {
            prop_assert_eq!(decision, without);
        }
    }
}
