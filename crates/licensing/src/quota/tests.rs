use jiff::ToSpan;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const WINDOWS: [Window; 4] = [Window::Day, Window::Month, Window::Anchored, Window::Lifetime];

fn date(text: &str) -> Date {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn limits_are_read_as_they_are_written() {
    let unlimited = Ok(Limit::Unlimited);
    let at_most = |limit| Ok(Limit::AtMost(limit));
    for (value, expected) in [
        (json!(null), unlimited),
        (json!(-1), unlimited),
        (json!(-7), unlimited),
        (json!(i64::MIN), unlimited),
        (json!(-1.0), unlimited),
        (json!(-1e300), unlimited),
        (json!("-1"), unlimited),
        (json!(0), at_most(0)),
        (json!(-0.0), at_most(0)),
        (json!("0"), at_most(0)),
        (json!(100), at_most(100)),
        (json!(100.0), at_most(100)),
        (json!(1e3), at_most(1000)),
        (json!("100"), at_most(100)),
        (json!(" 100.0\n"), at_most(100)),
        (json!(i64::MAX), at_most(MAX_LIMIT)),
        (json!("9223372036854775806"), at_most(MAX_LIMIT - 1)),
        (json!(u64::MAX), at_most(MAX_LIMIT)),
        (json!(1e300), at_most(MAX_LIMIT)),
        (json!("99999999999999999999"), at_most(MAX_LIMIT)),
        (json!(0.5), Err(UnreadableLimit)),
        (json!(-0.5), Err(UnreadableLimit)),
        (json!("0.5"), Err(UnreadableLimit)),
        (json!("abc"), Err(UnreadableLimit)),
        (json!(""), Err(UnreadableLimit)),
        (json!("inf"), Err(UnreadableLimit)),
        (json!("NaN"), Err(UnreadableLimit)),
        (json!("0x10"), Err(UnreadableLimit)),
        (json!("1 000"), Err(UnreadableLimit)),
        (json!(true), Err(UnreadableLimit)),
        (json!([]), Err(UnreadableLimit)),
        (json!({}), Err(UnreadableLimit)),
    ] {
        assert_eq!(Limit::of(Some(&value)), expected, "{value}");
    }
    assert_eq!(Limit::of(None), unlimited);
}

#[test]
fn a_limit_is_used_up_when_nothing_is_left() {
    let period = Period::of(Window::Month, None, at("2026-11-23")).expect("a month");
    for (limit, used, exhausted) in [
        (Limit::Unlimited, u64::MAX, false),
        (Limit::AtMost(0), 0, true),
        (Limit::AtMost(1), 0, false),
        (Limit::AtMost(100), 99, false),
        (Limit::AtMost(100), 100, true),
        (Limit::AtMost(100), 101, true),
    ] {
        assert_eq!(limit.exhausted(used, period).is_some(), exhausted, "{used} of {limit:?}");
    }
    let exhausted = Limit::AtMost(100).exhausted(103, period).expect("used up");
    assert_eq!((exhausted.limit, exhausted.used, exhausted.resets_at()), (100, 103, Some(at("2026-12-01"))));
    let nothing = Limit::AtMost(0).exhausted(0, period).expect("used up");
    assert_eq!(nothing.resets_at(), None, "waiting is of no use");
}

#[test]
fn periods_by_window_and_day() {
    let (day, month, anchored, lifetime) = (Window::Day, Window::Month, Window::Anchored, Window::Lifetime);
    for (window, anchor, now, start, end) in [
        (day, None, "2026-11-23T23:59:59.999999Z", "2026-11-23", Some("2026-11-24")),
        (day, None, "2026-11-24T00:00:00Z", "2026-11-24", Some("2026-11-25")),
        (day, None, "2028-02-28T12:00:00Z", "2028-02-28", Some("2028-02-29")),
        (day, None, "2026-12-31T12:00:00Z", "2026-12-31", Some("2027-01-01")),
        (month, None, "2026-11-30T23:59:59.999999Z", "2026-11-01", Some("2026-12-01")),
        (month, None, "2026-12-01T00:00:00Z", "2026-12-01", Some("2027-01-01")),
        (month, None, "2028-02-29", "2028-02-01", Some("2028-03-01")),
        // The anchor's day as it is, in the year that turns, and long after it.
        (anchored, Some("2026-01-15"), "2026-11-14T23:59:59Z", "2026-10-15", Some("2026-11-15")),
        (anchored, Some("2026-01-15"), "2026-11-15T00:00:00Z", "2026-11-15", Some("2026-12-15")),
        (anchored, Some("2026-01-15"), "2026-12-20", "2026-12-15", Some("2027-01-15")),
        (anchored, Some("2026-01-15"), "2027-01-14", "2026-12-15", Some("2027-01-15")),
        // Before the anchor: as if it had always been.
        (anchored, Some("2026-06-15"), "2026-02-01", "2026-01-15", Some("2026-02-15")),
        // The first is a month of the calendar.
        (anchored, Some("2026-06-01"), "2026-02-28", "2026-02-01", Some("2026-03-01")),
        // The 31st: the last day of shorter months, and the 31st again after them.
        (anchored, Some("2026-01-31"), "2026-02-27", "2026-01-31", Some("2026-02-28")),
        (anchored, Some("2026-01-31"), "2026-02-28", "2026-02-28", Some("2026-03-31")),
        (anchored, Some("2026-01-31"), "2026-03-30", "2026-02-28", Some("2026-03-31")),
        (anchored, Some("2026-01-31"), "2026-03-31", "2026-03-31", Some("2026-04-30")),
        (anchored, Some("2026-01-31"), "2026-04-30", "2026-04-30", Some("2026-05-31")),
        (anchored, Some("2026-01-31"), "2026-12-31", "2026-12-31", Some("2027-01-31")),
        // The 29th and 30th, with and without a leap day.
        (anchored, Some("2026-01-30"), "2028-02-29", "2028-02-29", Some("2028-03-30")),
        (anchored, Some("2028-02-29"), "2027-02-28", "2027-02-28", Some("2027-03-29")),
        (anchored, Some("2028-02-29"), "2028-02-28", "2028-01-29", Some("2028-02-29")),
        (anchored, Some("2028-02-29"), "2100-02-28", "2100-02-28", Some("2100-03-29")),
        (lifetime, None, "2026-11-23", "0001-01-01", None),
        // The ends of the calendar.
        (day, None, "infinity", "9999-12-31", None),
        (month, None, "infinity", "9999-12-01", None),
        (anchored, Some("2026-01-31"), "infinity", "9999-12-31", None),
        (lifetime, None, "infinity", "0001-01-01", None),
        (day, None, "-infinity", "0001-01-01", Some("0001-01-02")),
        (month, None, "-infinity", "0001-01-01", Some("0001-02-01")),
        (anchored, Some("2026-01-15"), "-infinity", "0001-01-01", Some("0001-01-15")),
        (anchored, Some("2026-01-01"), "-infinity", "0001-01-01", Some("0001-02-01")),
        (lifetime, None, "-infinity", "0001-01-01", None),
    ] {
        let period = Period::of(window, anchor.map(date), at(now));
        let expected = Period { window, start: date(start), end: end.map(date) };
        assert_eq!(period, Some(expected), "{window:?} from {anchor:?} at {now}");
    }
    assert_eq!(Period::of(anchored, None, at("2026-11-23")), None);
}

#[test]
fn a_period_has_a_length() {
    let seconds = |window, now| Period::of(window, Some(date("2026-01-31")), at(now)).expect("a period").seconds();
    assert_eq!(seconds(Window::Day, "2026-11-23"), Some(86_400));
    assert_eq!(seconds(Window::Month, "2026-11-23"), Some(30 * 86_400));
    assert_eq!(seconds(Window::Month, "2028-02-01"), Some(29 * 86_400));
    assert_eq!(seconds(Window::Anchored, "2026-02-01"), Some(28 * 86_400));
    assert_eq!(seconds(Window::Lifetime, "2026-11-23"), None);
}

#[test]
fn header_values_are_lists_of_strings_with_parameters() {
    let now = at("2026-11-30T23:39:26.5Z");
    let quota = |feature, limit, remaining, window| Quota {
        feature,
        limit,
        remaining,
        period: Period::of(window, None, now).expect("a period"),
    };
    for (quotas, policy, standing) in [
        (vec![], "", ""),
        (vec![quota("tickets", 100, 42, Window::Month)], r#""tickets";q=100;w=2592000"#, r#""tickets";r=42;t=1234"#),
        (
            vec![quota("tickets", 100, 0, Window::Month), quota("sms", 5, 5, Window::Day)],
            r#""tickets";q=100;w=2592000, "sms";q=5;w=86400"#,
            r#""tickets";r=0;t=1234, "sms";r=5;t=1234"#,
        ),
        (vec![quota("seats", 3, 1, Window::Lifetime)], r#""seats";q=3"#, r#""seats";r=1"#),
        // No name of a feature has such characters, but none may ever break the field.
        (
            vec![quota("a\"b\\c\r\nä", u64::MAX, u64::MAX, Window::Lifetime)],
            r#""a\"b\\c???";q=999999999999999"#,
            r#""a\"b\\c???";r=999999999999999"#,
        ),
    ] {
        assert_eq!((rate_limit_policy(&quotas).as_str(), rate_limit(&quotas, now).as_str()), (policy, standing));
    }
}

#[test]
fn thresholds_are_reached_and_the_highest_counts() {
    let usual: &[u8] = &[80, 100];
    for (thresholds, used, limit, expected) in [
        (usual, 0, 100, None),
        (usual, 79, 100, None),
        (usual, 80, 100, Some(80)),
        (usual, 99, 100, Some(80)),
        (usual, 100, 100, Some(100)),
        (usual, 250, 100, Some(100)),
        (usual, 2, 3, None),
        (usual, 3, 3, Some(100)),
        (usual, 0, 0, None),
        (usual, 1, 0, Some(100)),
        (usual, u64::MAX / 10 * 8, u64::MAX, None),
        (usual, u64::MAX / 10 * 8 + 4, u64::MAX, Some(80)),
        (usual, u64::MAX, u64::MAX, Some(100)),
        (&[100, 80], 100, 100, Some(100)),
        (&[1, 255], 254, 100, Some(1)),
        (&[1, 255], 255, 100, Some(255)),
        (&[], 100, 100, None),
    ] {
        assert_eq!(crossed(thresholds, used, limit), expected, "{used} of {limit} at {thresholds:?}");
    }
}

fn any_window() -> impl Strategy<Value = Window> {
    proptest::sample::select(WINDOWS.to_vec())
}

/// A day of the years 1600 to 2400, which have every kind of leap year.
fn any_day() -> impl Strategy<Value = Date> {
    (0..292_194_i32).prop_map(|days| date("1600-01-01").saturating_add(days.days()))
}

proptest! {
    /// No moment is without a period, and each is in the one that it is counted in.
    #[test]
    fn now_lies_in_its_period(window in any_window(), anchor in any_day(), micros in any::<i64>()) {
        let now = Timestamp::from_micros(micros);
        let period = Period::of(window, Some(anchor), now).expect("a period");
        prop_assert!(period.contains(now.day()), "{:?} at {}", period, now);
        prop_assert!(period.end.is_none_or(|end| period.start < end));
    }

    /// What comes after a period begins where it ends, and all its days are counted in it: no gap, no overlap.
    #[test]
    fn periods_tile_the_calendar(window in any_window(), anchor in any_day(), day in any_day()) {
        let of = |day| Period::of(window, Some(anchor), Timestamp::midnight(day)).expect("a period");
        let period = of(day);
        let mut inside = period.start.max(date("1590-01-01"));
        while inside < period.end.unwrap_or(date("1590-03-01")) {
            prop_assert_eq!(of(inside), period, "{}", inside);
            inside = inside.tomorrow().expect("a day");
        }
        if let Some(end) = period.end {
            prop_assert_eq!(of(end).start, end);
            prop_assert_eq!(of(period.start.yesterday().expect("a day")).end, Some(period.start));
            prop_assert_eq!(period.resets_at(), Some(Timestamp::midnight(end)));
        }
    }

    /// An anchored window begins on the anchor's day wherever the month has one, and on its last day elsewhere.
    #[test]
    fn anchored_windows_keep_their_day(anchor in any_day(), day in any_day()) {
        let period = Period::of(Window::Anchored, Some(anchor), Timestamp::midnight(day)).expect("a period");
        for begins in [Some(period.start), period.end].into_iter().flatten() {
            prop_assert_eq!(begins.day(), anchor.day().min(begins.days_in_month()));
        }
        let days = period.seconds().expect("an end") / 86_400;
        prop_assert!((28..=31).contains(&days), "{} days", days);
    }

    /// No value of `usage_limits` is too odd to be asked about, and whole numbers mean themselves in every spelling.
    #[test]
    fn whole_numbers_mean_themselves(limit in 0..1_u64 << 53, blanks in " {0,2}") {
        for value in [json!(limit), json!(limit as f64), json!(limit.to_string()), json!(format!("{blanks}{limit}.0{blanks}"))] {
            prop_assert_eq!(Limit::of(Some(&value)), Ok(Limit::AtMost(limit)), "{}", value);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,12}") {
        let read = Limit::of(Some(&json!(text)));
        prop_assert!(read.is_err() || text.trim().parse::<f64>().is_ok());
    }
}
