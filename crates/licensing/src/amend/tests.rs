use proptest::prelude::*;
use serde_json::json;

use super::*;

const TENANT: TenantId = TenantId::new(uuid::Uuid::from_u128(7));
const HOUR: i64 = 3_600_000_000;

/// So many hours from the beginning of all tests, at hour 1000.
fn at(hours: i64) -> Timestamp {
    Timestamp::from_micros((1000 + hours) * HOUR)
}

fn plan(name: &str, features: &[&str], limits: &[(&str, u64)]) -> Plan {
    Plan {
        name: name.into(),
        features: features.iter().copied().map(Arc::from).collect(),
        limits: limits.iter().map(|(feature, limit)| (Arc::from(*feature), *limit)).collect(),
    }
}

/// `sms` is sold by itself: a rule asks for it, and no plan includes it.
fn plans() -> Plans {
    Plans::new(vec![
        plan("starter", &["tickets"], &[("tickets", 100)]),
        plan("professional", &["crm", "tickets"], &[("tickets", 1000)]),
        plan("enterprise", &["crm", "fieldops", "tickets"], &[]),
    ])
    .with_features(["crm", "sms"].map(Arc::from))
}

fn set_plan(plan: &str) -> Command {
    Command::SetPlan { plan: plan.into(), valid_until: None }
}

fn upgrade(plan: &str) -> Command {
    Command::Upgrade { plan: plan.into(), downgrade: false, grace: Duration::ZERO }
}

fn grant(feature: &str, until: i64) -> Command {
    Command::Grant { feature: feature.into(), limit_delta: None, end: End::At(at(until)) }
}

fn for_good(feature: &str, limit_delta: Option<i64>) -> Command {
    Command::Grant { feature: feature.into(), limit_delta, end: End::At(Timestamp::INFINITY) }
}

fn revoke(feature: &str) -> Command {
    Command::Revoke { feature: feature.into() }
}

/// What becomes of a new licence of `plan` by these commands, each at its hour.
fn after(plan: &str, commands: &[(i64, Command)]) -> Result<Holding, Refused> {
    let first = amend(TENANT, &Holding::default(), &set_plan(plan), &plans(), at(0));
    commands.iter().try_fold(first?, |holding, (hour, command)| amend(TENANT, &holding, command, &plans(), at(*hour)))
}

/// `plan: feature, feature<hours; feature=limit`
fn written(holding: &Holding) -> String {
    let Some(license) = &holding.license else { return "none".to_owned() };
    let feature = |feature: &str| match license.features_until.get(feature) {
        Some(end) => format!("{feature}<{}", end.as_micros() / HOUR - 1000),
        None => feature.to_owned(),
    };
    let features = license.features.iter().map(feature).collect::<Vec<_>>().join(", ");
    let limits = license.usage_limits.iter().map(|(feature, limit)| format!(" {feature}={limit}")).collect::<String>();
    format!("{}: {features};{limits}", license.plan)
}

#[test]
fn what_becomes_of_a_licence() {
    for (plan, commands, expected) in [
        ("starter", vec![], "starter: tickets; tickets=100"),
        ("starter", vec![(1, upgrade("professional"))], "professional: crm, tickets; tickets=1000"),
        ("professional", vec![(1, set_plan("starter"))], "starter: tickets; tickets=100"),
        ("starter", vec![(1, grant("crm", 5))], "starter: crm<5, tickets; tickets=100"),
        ("starter", vec![(1, for_good("sms", None))], "starter: sms, tickets; tickets=100"),
        // Never shorter, but longer, and for good.
        ("starter", vec![(1, grant("crm", 5)), (2, grant("crm", 9))], "starter: crm<9, tickets; tickets=100"),
        ("starter", vec![(1, grant("crm", 5)), (2, for_good("crm", None))], "starter: crm, tickets; tickets=100"),
        // It survives changes of the plan, and where the plan gives the feature it has no end.
        (
            "starter",
            vec![(1, grant("sms", 5)), (2, upgrade("enterprise"))],
            "enterprise: crm, fieldops, sms<5, tickets;",
        ),
        (
            "starter",
            vec![(1, grant("crm", 5)), (2, upgrade("professional"))],
            "professional: crm, tickets; tickets=1000",
        ),
        (
            "starter",
            vec![(1, grant("crm", 5)), (2, upgrade("professional")), (3, set_plan("starter"))],
            "starter: crm<5, tickets; tickets=100",
        ),
        ("professional", vec![(1, grant("crm", 5))], "professional: crm, tickets; tickets=1000"),
        // Once it has ended, the next change forgets it.
        ("starter", vec![(1, grant("crm", 5)), (5, for_good("sms", None))], "starter: sms, tickets; tickets=100"),
        ("starter", vec![(1, grant("crm", 5)), (6, grant("crm", 7))], "starter: crm<7, tickets; tickets=100"),
        // Limits: what the plan says and the add-on adds; unlimited stays so; without the plan the add-on is all there is.
        ("starter", vec![(1, for_good("tickets", Some(50)))], "starter: tickets; tickets=150"),
        ("starter", vec![(1, for_good("tickets", Some(-150)))], "starter: tickets; tickets=0"),
        ("starter", vec![(1, for_good("sms", Some(50)))], "starter: sms, tickets; tickets=100 sms=50"),
        ("enterprise", vec![(1, for_good("tickets", Some(50)))], "enterprise: crm, fieldops, tickets;"),
        (
            "starter",
            vec![(1, for_good("tickets", Some(50))), (2, for_good("tickets", None)), (3, upgrade("professional"))],
            "professional: crm, tickets; tickets=1050",
        ),
        (
            "starter",
            vec![(1, for_good("tickets", Some(50))), (2, for_good("tickets", Some(9)))],
            "starter: tickets; tickets=109",
        ),
        (
            "starter",
            vec![
                (1, Command::Grant { feature: "tickets".into(), limit_delta: Some(50), end: End::At(at(5)) }),
                (5, for_good("crm", None)),
            ],
            "starter: crm, tickets; tickets=100",
        ),
        // Revoked, and what brings it back.
        ("starter", vec![(1, for_good("sms", Some(5))), (2, revoke("sms"))], "starter: tickets; tickets=100"),
        ("professional", vec![(1, revoke("crm"))], "professional: tickets; tickets=1000"),
        ("professional", vec![(1, revoke("crm")), (2, grant("sms", 5))], "professional: sms<5, tickets; tickets=1000"),
        ("professional", vec![(1, revoke("crm")), (2, grant("crm", 5))], "professional: crm<5, tickets; tickets=1000"),
        ("professional", vec![(1, revoke("crm")), (2, Command::Reapply)], "professional: crm, tickets; tickets=1000"),
        ("starter", vec![(1, grant("crm", 5)), (2, Command::Reapply)], "starter: crm<5, tickets; tickets=100"),
        ("starter", vec![(1, grant("crm", 5)), (4, Command::Tidy)], "starter: crm<5, tickets; tickets=100"),
        ("starter", vec![(1, grant("crm", 5)), (5, Command::Tidy)], "starter: tickets; tickets=100"),
    ] {
        let found = after(plan, &commands).map(|holding| written(&holding));
        assert_eq!(found.as_deref(), Ok(expected.trim_end()), "{plan}, {commands:?}");
    }
}

/// The audit holds commands in this form, and compares them.
#[test]
fn commands_are_read_as_they_are_written() {
    let grant = |end| Command::Grant { feature: "crm".into(), limit_delta: Some(-5), end };
    for (command, expected) in [
        (grant(End::At(at(0))), json!({ "action": "grant", "feature": "crm", "limit_delta": -5, "until": at(0) })),
        (
            grant(End::InSeconds(60)),
            json!({ "action": "grant", "feature": "crm", "limit_delta": -5, "in_seconds": 60 }),
        ),
        (Command::Extend { end: End::At(Timestamp::INFINITY) }, json!({ "action": "extend", "until": "infinity" })),
        (upgrade("starter"), json!({ "action": "upgrade", "plan": "starter" })),
        (Command::Reapply, json!({ "action": "reapply_plan" })),
    ] {
        assert_eq!(json!(command), expected);
        assert_eq!(serde_json::from_value::<Command>(expected).ok(), Some(command));
    }
}

/// A grant counts from now; an extension from the present end, or from now if that has passed.
#[test]
fn spans_are_counted_from_where_it_makes_sense() {
    let day = End::after(Duration::from_hours(24));
    let granted = Command::Grant { feature: "crm".into(), limit_delta: None, end: day };
    let granted = after("starter", &[(5, granted)]).expect("a grant");
    assert_eq!(granted.addon("crm").map(|addon| addon.valid_until), Some(at(29)));
    for (hour, expected) in [(5, 744), (719, 744), (800, 824)] {
        let extended = after("starter", &[(hour, Command::Extend { end: day })]).expect("an extension");
        assert_eq!(extended.license.map(|license| license.valid_until), Some(at(expected)), "in hour {hour}");
    }
}

#[test]
fn what_is_refused() {
    for (plan, commands, expected) in [
        ("gold", vec![], Refused::UnknownPlan),
        ("starter", vec![(1, upgrade("gold"))], Refused::UnknownPlan),
        ("starter", vec![(1, upgrade("starter"))], Refused::SamePlan),
        ("professional", vec![(1, upgrade("starter"))], Refused::DowngradeNotAllowed),
        ("starter", vec![(1, for_good("crn", None))], Refused::UnknownFeature),
        ("starter", vec![(1, grant("crm", 1))], Refused::InThePast),
        ("starter", vec![(1, grant("crm", 5)), (2, grant("crm", 4))], Refused::GrantedLonger),
        ("starter", vec![(1, for_good("crm", None)), (2, grant("crm", 4))], Refused::GrantedLonger),
        ("starter", vec![(1, revoke("crm"))], Refused::NotGranted),
        ("starter", vec![(1, grant("crm", 5)), (5, revoke("crm"))], Refused::NotGranted),
        ("starter", vec![(1, Command::Extend { end: End::At(at(720)) })], Refused::ValidLonger),
        ("starter", vec![(800, Command::Extend { end: End::At(at(799)) })], Refused::InThePast),
        ("starter", vec![(1, Command::Extend { end: End::InSeconds(0) })], Refused::ValidLonger),
        ("starter", vec![(720, upgrade("professional"))], Refused::LicenseExpired),
        (
            "starter",
            vec![(1, Command::SetPlan { plan: "starter".into(), valid_until: Some(at(0)) })],
            Refused::InThePast,
        ),
    ] {
        assert_eq!(after(plan, &commands), Err(expected), "{plan}, {commands:?}");
    }
    let in_grace = Command::Upgrade { plan: "professional".into(), downgrade: false, grace: Duration::from_hours(72) };
    assert!(after("starter", &[(720, in_grace.clone())]).is_ok(), "whoever is served may buy");
    assert_eq!(after("starter", &[(792, in_grace)]), Err(Refused::LicenseExpired));
    let nothing = Holding::default();
    for command in
        [upgrade("starter"), grant("crm", 5), revoke("crm"), Command::Extend { end: End::At(at(9)) }, Command::Reapply]
    {
        assert_eq!(amend(TENANT, &nothing, &command, &plans(), at(0)), Err(Refused::NoLicense), "{command:?}");
    }
    let past = Command::SetPlan { plan: "starter".into(), valid_until: Some(at(0)) };
    assert_eq!(amend(TENANT, &nothing, &past, &plans(), at(0)), Err(Refused::InThePast));
}

#[test]
fn a_first_licence_holds_for_thirty_days_or_as_long_as_is_said() {
    let license = after("starter", &[]).expect("a holding").license.expect("a licence");
    assert_eq!((license.valid_from, license.valid_until, license.auto_renew), (at(0), at(720), true));
    let command = Command::SetPlan { plan: "starter".into(), valid_until: Some(Timestamp::INFINITY) };
    let holding = amend(TENANT, &Holding::default(), &command, &plans(), at(0)).expect("a holding");
    assert_eq!(holding.license.map(|license| license.valid_until), Some(Timestamp::INFINITY));
}

/// A plan that is not sold any more: it is cheaper than none, and what it said of limits is what the licence says.
#[test]
fn plans_that_are_not_sold_any_more() {
    let mut holding = after("starter", &[]).expect("a holding");
    let license = holding.license.as_mut().expect("a licence");
    license.plan = "gold".into();
    license.usage_limits = [("tickets".to_owned(), 7.into()), ("crm".to_owned(), (-1).into())].into_iter().collect();
    let run = |commands: &[Command]| {
        let end = commands
            .iter()
            .try_fold(holding.clone(), |holding, command| amend(TENANT, &holding, command, &plans(), at(1)));
        end.map(|holding| written(&holding))
    };
    assert_eq!(run(&[upgrade("starter")]).as_deref(), Ok("starter: tickets; tickets=100"));
    assert_eq!(run(&[Command::Reapply]), Err(Refused::UnknownPlan));
    let more = for_good("tickets", Some(50));
    assert_eq!(run(std::slice::from_ref(&more)).as_deref(), Ok("gold: tickets; tickets=57 crm=-1"));
    assert_eq!(run(&[more.clone(), more.clone()]).as_deref(), Ok("gold: tickets; tickets=57 crm=-1"));
    let less = run(&[more, revoke("tickets")]);
    assert_eq!(less.as_deref(), Ok("gold: ; tickets=7 crm=-1"));
    // The least that JSON can hold has no opposite.
    let least = run(&[for_good("tickets", Some(i64::MIN)), for_good("tickets", Some(1))]);
    assert_eq!(least.as_deref(), Ok("gold: tickets; tickets=9223372036854775808 crm=-1"));
}

/// A limit of another program's spelling is one, and is not lost where an add-on changes it.
#[test]
fn an_addon_changes_a_limit_that_is_written_as_text() {
    let mut holding = after("starter", &[]).expect("a holding");
    let license = holding.license.as_mut().expect("a licence");
    license.plan = "gold".into();
    for (limit, expected) in [(json!("7"), "57"), (json!(7.0), "57"), (json!(-1), "null"), (json!("many"), "null")] {
        let mut holding = holding.clone();
        let license = holding.license.as_mut().expect("a licence");
        license.usage_limits = [("tickets".to_owned(), limit.clone())].into_iter().collect();
        let after = amend(TENANT, &holding, &for_good("tickets", Some(50)), &plans(), at(1)).expect("granted");
        let after = after.license.expect("a licence").usage_limits.get("tickets").cloned().unwrap_or_default();
        assert_eq!(after.to_string(), expected, "{limit}");
    }
}

/// What plain SQL has put into a licence: a grant and its end touch nothing but their own feature.
#[test]
fn what_nothing_explains_is_kept_until_the_plan_is_applied() {
    let mut holding = after("starter", &[]).expect("a holding");
    let license = holding.license.as_mut().expect("a licence");
    license.features = ["analytics", "sms", "tickets"].into_iter().collect();
    license.usage_limits.insert("tickets".to_owned(), 5000.into());
    let run = |commands: &[(i64, Command)]| {
        let end = commands.iter().try_fold(holding.clone(), |holding, (hour, command)| {
            amend(TENANT, &holding, command, &plans(), at(*hour))
        });
        written(&end.expect("nothing is refused"))
    };
    assert_eq!(run(&[(1, grant("crm", 5))]), "starter: analytics, crm<5, sms, tickets; tickets=5000");
    assert_eq!(run(&[(1, grant("sms", 5))]), "starter: analytics, sms, tickets; tickets=5000", "it had no end before");
    assert_eq!(
        run(&[(1, grant("sms", 5)), (6, grant("crm", 9))]),
        "starter: analytics, crm<9, sms, tickets; tickets=5000"
    );
    assert_eq!(run(&[(1, grant("crm", 5)), (2, revoke("crm"))]), "starter: analytics, sms, tickets; tickets=5000");
    assert_eq!(run(&[(1, revoke("analytics"))]), "starter: sms, tickets; tickets=5000");
    assert_eq!(run(&[(1, Command::Reapply)]), "starter: tickets; tickets=100");
}

#[test]
fn names_are_read_back_and_every_refusal_has_a_sentence() {
    let holding = after("starter", &[(1, grant("crm", 5))]).expect("a holding");
    for refused in Refused::ALL {
        assert_eq!(Refused::named(refused.name()), Some(refused));
        assert!(refused.explain(&holding, &revoke("crm"), &plans()).len() > 20);
    }
    assert_eq!(Refused::named("applied"), None);
    let sentence = Refused::GrantedLonger.explain(&holding, &grant("crm", 2), &plans());
    assert_eq!(sentence, "crm is granted until 1970-02-11T21:00:00Z already: revoke it first to shorten that");
    for command in [set_plan("a"), upgrade("a"), for_good("a", Some(1)), revoke("a"), Command::Reapply] {
        let json = serde_json::to_value(&command).expect("JSON");
        assert_eq!(json["action"], command.action());
        assert_eq!(serde_json::from_value::<Command>(json).expect("read back"), command);
    }
    let json = serde_json::to_value(&holding).expect("JSON");
    assert_eq!(serde_json::from_value::<Holding>(json).expect("read back"), holding);
}

const FEATURES: [&str; 5] = ["crm", "fieldops", "sms", "tickets", "unheard-of"];

fn any_command() -> impl Strategy<Value = Command> {
    let plan = prop::sample::select(vec!["starter", "professional", "enterprise", "gold"]);
    let feature = prop::sample::select(FEATURES.to_vec());
    let until = prop_oneof![(0i64..60).prop_map(at), Just(Timestamp::INFINITY)];
    let delta = prop::option::of(-50i64..50);
    prop_oneof![
        plan.clone().prop_map(set_plan),
        (plan, any::<bool>()).prop_map(|(plan, downgrade)| Command::Upgrade {
            plan: plan.into(),
            downgrade,
            grace: Duration::ZERO
        }),
        (feature.clone(), delta, until.clone()).prop_map(|(feature, limit_delta, until)| Command::Grant {
            feature: feature.into(),
            limit_delta,
            end: End::At(until)
        }),
        feature.prop_map(revoke),
        until.prop_map(|until| Command::Extend { end: End::At(until) }),
        (0_u64..3600 * 40).prop_map(|seconds| Command::Extend { end: End::InSeconds(seconds) }),
        Just(Command::Reapply),
        Just(Command::Tidy),
    ]
}

/// A first licence, and commands with the hours between them.
fn any_life() -> impl Strategy<Value = Vec<(i64, Command)>> {
    prop::collection::vec((0i64..6, any_command()), 0..12).prop_map(|steps| {
        let mut hour = 0;
        let steps = steps.into_iter().map(|(pause, command)| {
            hour += pause;
            (hour, command)
        });
        std::iter::once((0, set_plan("starter"))).chain(steps).collect()
    })
}

proptest! {
    /// Whatever is asked for, in whatever order, refusals passed over.
    #[test]
    fn through_any_life(life in any_life()) {
        let plans = plans();
        let mut holding = Holding::default();
        for (hour, command) in life {
            let now = at(hour);
            let before = holding.clone();
            if let Ok(after) = amend(TENANT, &before, &command, &plans, now) {
                holding = after;
            }
            let license = holding.license.as_ref().expect("the first command makes one");
            // Nothing that has ended remains, and each add-on is in force in the licence.
            for addon in &holding.addons {
                prop_assert!(addon.valid_until > now || holding == before);
                prop_assert!(license.features.contains(&addon.feature), "{:?}", holding);
                // It never ends before its add-on does.
                let end = license.features_until.get(&*addon.feature);
                prop_assert!(end.is_none_or(|end| *end == addon.valid_until));
            }
            // Only an add-on's feature has an end, and it is included.
            for (feature, end) in &license.features_until {
                prop_assert!(license.features.contains(feature));
                prop_assert!(holding.addon(feature).is_some_and(|addon| addon.valid_until == *end));
            }
            prop_assert!(holding.addons.windows(2).all(|pair| pair[0].feature < pair[1].feature));

            let Some(former) = &before.license else { continue };
            prop_assert_eq!((license.valid_from, license.auto_renew), (former.valid_from, former.auto_renew));
            prop_assert!(license.valid_until >= former.valid_until);
            let extends = matches!(command, Command::Extend { .. });
            prop_assert!(extends || license.valid_until == former.valid_until);
            // But for a revocation, no add-on that is in force is lost.
            for addon in before.addons.iter().filter(|addon| addon.valid_until > now) {
                let revoked = command == revoke(&addon.feature);
                let kept = holding.addon(&addon.feature).is_some_and(|kept| kept.valid_until >= addon.valid_until);
                prop_assert!(revoked || kept);
            }
            // A grant and a revocation touch their own feature alone.
            if let Command::Grant { feature, .. } | Command::Revoke { feature } = &command {
                for other in FEATURES.iter().filter(|other| *other != feature) {
                    prop_assert_eq!(license.includes(other, now), former.includes(other, now));
                }
            }
            // Whoever has a plan applied has just the plan and the add-ons.
            if let (Command::SetPlan { plan, .. } | Command::Upgrade { plan, .. }, true) = (&command, holding != before) {
                let plan = plans.get(plan).expect("it is sold");
                for feature in FEATURES {
                    let explained = plan.includes(feature) || holding.addon(feature).is_some();
                    prop_assert_eq!(license.includes(feature, now), explained);
                }
            }
        }
    }

    /// Asked for twice, the second changes nothing, or is refused; but for an extension by a span, which goes on from the end.
    #[test]
    fn twice_is_once(life in any_life(), command in any_command()) {
        prop_assume!(!matches!(command, Command::Extend { end: End::InSeconds(_) }));
        let plans = plans();
        let mut holding = Holding::default();
        for (hour, step) in life {
            holding = amend(TENANT, &holding, &step, &plans, at(hour)).unwrap_or(holding);
        }
        if let Ok(once) = amend(TENANT, &holding, &command, &plans, at(30)) {
            let twice = amend(TENANT, &once, &command, &plans, at(30));
            prop_assert!(twice.as_ref().is_ok_and(|twice| *twice == once) || twice.is_err(), "{:?} {:?}", once, twice);
        }
    }
}
