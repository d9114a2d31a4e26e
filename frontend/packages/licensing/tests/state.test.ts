import { describe, expect, it } from "vitest";
import { backoff } from "../src/backoff.js";
import { ServerClock } from "../src/clock.js";
import { PaymentRequiredError } from "../src/errors.js";
import {
  featuresNow,
  INITIAL,
  isBehind,
  isDisputed,
  isSettled,
  type Known,
  nextTurn,
  standingNow,
  stillDenied,
  usageOf,
  withUsage,
} from "../src/state.js";
import type { License, Refusal } from "../src/types.js";
import { fillIn, isOwnPath, webUrl } from "../src/urls.js";
import { professional, REFUSAL, STARTER } from "./world.js";

const HOUR = 3_600_000;
const NOON = Date.parse("2026-12-01T12:00:00Z");
const at = (hours: number) => new Date(NOON + hours * HOUR).toISOString();
/** The proxy's clock, so far ahead of ours; now is so many hours after NOON of ours. */
const clock = (hours = 0, ahead = 0) => {
  const at = (ours: number) => ours + ahead * HOUR;
  return { at, now: () => at(NOON + hours * HOUR) };
};
const known = (license: License | null, hours = 0, revision = license?.revision ?? 0): Known => ({
  license,
  revision,
  at: NOON + hours * HOUR,
});

describe("what passes", () => {
  it.each([
    ["for ever", {}, 1000, true],
    ["before the end", { validUntil: at(1) }, 0.999, true],
    ["on the dot", { validUntil: at(1) }, 1, false],
    ["in grace", { validUntil: at(1), graceUntil: at(73) }, 72.9, true],
    ["after it", { validUntil: at(1), graceUntil: at(73) }, 73, false],
  ])("%s", (_, change, hours, passes) => {
    expect(featuresNow(known({ ...STARTER, ...change }), clock(hours)).has("tickets")).toBe(passes);
    // However wrong our own clock is.
    expect(featuresNow(known({ ...STARTER, ...change }, 5), clock(hours + 5, -5)).has("tickets")).toBe(passes);
  });

  it("is nothing that is not true, and nothing without a licence", () => {
    const odd = { ...STARTER, features: { tickets: true, crm: false } };
    expect([...featuresNow(known(odd), clock())]).toEqual(["tickets"]);
    expect(featuresNow(known(null), clock()).size).toBe(0);
  });

  it("is what the proxy says where the clocks contradict it, and that is disputed for a while", () => {
    const ended = { ...STARTER, validUntil: at(-0.001) };
    expect(featuresNow(known(ended), clock(1000)).size).toBe(1);
    expect(isDisputed(known(ended), clock(1000))).toBe(true);
    expect(isDisputed(known({ ...STARTER, validUntil: at(-1) }), clock())).toBe(false);
    expect(isDisputed(known({ ...STARTER, validUntil: at(1) }), clock())).toBe(false);
    expect(isDisputed(known({ ...ended, features: {} }), clock())).toBe(false);
    // Once the proxy's clock is known, it may turn out that there was nothing to dispute.
    expect(featuresNow(known(ended), clock(1000, -1)).size).toBe(0);
  });

  it("ends for what was told nobody knows when", () => {
    const given = { ...known({ ...STARTER, validUntil: at(-1) }), at: Number.NEGATIVE_INFINITY };
    expect(featuresNow(given, clock()).size).toBe(0);
  });
});

it.each<[string, License | null, number, string]>([
  ["there is none", null, 0, "none"],
  ["it holds", STARTER, 0, "valid"],
  ["it has ended since", { ...STARTER, validUntil: at(1) }, 1, "ended"],
  ["it had ended before", { ...STARTER, features: {}, validUntil: at(-1) }, 0, "ended"],
  ["it begins", { ...STARTER, features: {}, validFrom: at(1) }, 0, "not_begun"],
  ["it has begun by another clock", { ...STARTER, validFrom: at(1) }, 0, "valid"],
  ["it has nothing", { ...STARTER, features: {} }, 0, "valid"],
])("how it stands: %s", (_, license, hours, standing) => {
  expect(standingNow(known(license), clock(hours))).toBe(standing);
});

it.each<[string, Partial<License>, number | null]>([
  ["nothing to come", {}, null],
  ["it begins", { validFrom: at(2), validUntil: at(5), features: {} }, 2],
  ["it has begun by another clock", { validFrom: at(2), validUntil: at(5) }, 5],
  ["it ends", { validUntil: at(5) }, 5],
  ["its grace ends", { validUntil: at(5), graceUntil: at(9) }, 9],
  ["it has ended", { validUntil: at(-5), features: {} }, null],
])("the next turn: %s", (_, change, hours) => {
  const turn = nextTurn(known({ ...STARTER, ...change }), clock());
  expect(turn === null ? null : (turn - NOON) / HOUR).toBe(hours);
});

it.each<[string, number | null, Known, number, boolean]>([
  ["a later one", 11, known(STARTER), 0, false],
  ["the same, asked for since", 10, known(STARTER), 0, false],
  ["the same, asked for before: some of it may have ended since", 10, known(STARTER), -1, true],
  ["an earlier one", 9, known(STARTER), 0, true],
  ["none, where there was one", null, known(STARTER), 0, true],
  ["none after none", null, known(null, 0, 10), 0, false],
  ["the one that was deleted", 10, known(null, 0, 10), 0, true],
  ["one that was made after that", 11, known(null, 0, 10), 0, false],
])("%s is behind: revision %s", (_, next, before, askedAfter, expected) => {
  const license = next === null ? null : { ...STARTER, revision: next };
  expect(isBehind(license, before, before.at + askedAfter)).toBe(expected);
});

it("replicas have agreed two seconds after", () => {
  const before = known(STARTER);
  expect([isSettled(before, before.at + 1999), isSettled(before, before.at + 2000)]).toEqual([false, true]);
});

describe("usage", () => {
  it.each([
    ["some left", { tickets: 100 }, { tickets: 3 }, { limit: 100, used: 3, remaining: 97, isExhausted: false }],
    ["none left", { tickets: 3 }, { tickets: 4 }, { limit: 3, used: 4, remaining: 0, isExhausted: true }],
    ["nothing used", { tickets: 3 }, {}, { limit: 3, used: 0, remaining: 3, isExhausted: false }],
    ["not known", { tickets: 3 }, null, { limit: 3, used: null, remaining: null, isExhausted: false }],
    ["none at all", { tickets: 0 }, null, { limit: 0, used: null, remaining: null, isExhausted: true }],
    ["unlimited", { tickets: -1 }, { tickets: 9 }, { limit: null, used: 9, remaining: null, isExhausted: false }],
    ["null", { tickets: null }, { tickets: 9 }, { limit: null, used: 9, remaining: null, isExhausted: false }],
    ["another's", { crm: 1 }, { crm: 1 }, { limit: null, used: 0, remaining: null, isExhausted: false }],
  ])("%s", (_, usageLimits, currentUsage, expected) => {
    expect(usageOf({ ...STARTER, usageLimits, currentUsage } as License, "tickets")).toEqual(expected);
  });

  it("of nobody", () => {
    expect(usageOf(null, "tickets")).toEqual({ limit: null, used: null, remaining: null, isExhausted: false });
  });
});

describe("a denial", () => {
  const state = (license: License | null) => ({
    ...INITIAL,
    license,
    features: license ? new Set(Object.keys(license.features)) : INITIAL.features,
  });
  const limited = { ...REFUSAL, feature: "tickets", reason: "usage_limit_exceeded", limit: 100, used: 100 } as const;
  const used = (tickets: number, limit: number | null = 100): License => ({
    ...STARTER,
    usageLimits: { tickets: limit },
    currentUsage: { tickets },
  });
  it.each<[string, Refusal, License | null, License | null, boolean]>([
    ["of a feature that is bought", REFUSAL, STARTER, professional(), false],
    ["while the page was wrong", REFUSAL, professional(), professional(12), true],
    ["and is still missing", REFUSAL, STARTER, { ...STARTER, revision: 12 }, true],
    ["without a licence any more", REFUSAL, STARTER, null, true],
    ["of a limit that was raised", limited, used(100), used(100, 500), false],
    ["of a limit that is gone", limited, used(100), used(100, null), false],
    ["of a limit that stands", limited, used(100), used(100), true],
    ["of a limit whose count is told to be lower: it is told late", limited, used(100), used(97), true],
    ["of a limit that was lowered, which is told late", limited, used(100, 500), used(100), true],
    ["without a feature, once there is a licence", { ...REFUSAL, feature: null }, null, STARTER, false],
    ["of a limit whose use is told late", limited, used(97), used(99), true],
    ["of a limit whose use was not known", limited, { ...used(0), currentUsage: null }, used(99), true],
  ])("%s", (_, refused, before, after, holds) => {
    expect(stillDenied(new PaymentRequiredError(402, refused), state(before), state(after))).toBe(holds);
  });
});

describe("the proxy's clock", () => {
  it("is narrowed down by answers that tell it to the second, and never too late", () => {
    const ahead = 7 * HOUR + 123;
    const heard = new ServerClock();
    expect(heard.at(5)).toBe(5);
    for (let sent = 0; sent < 60_000; sent += 1237) {
      const written = Math.floor((sent + 20 + ahead) / 1000) * 1000;
      heard.heard(new Date(written).toUTCString(), sent, sent + 40);
      expect(heard.at(0)).toBeLessThanOrEqual(ahead);
    }
    expect(ahead - heard.at(0)).toBeLessThan(60);
  });

  it("is the latest where one of the clocks was set", () => {
    const heard = new ServerClock();
    heard.heard(new Date(1000 * HOUR).toUTCString(), 0, 10);
    heard.heard(new Date(2000 * HOUR).toUTCString(), 0, 10);
    heard.heard(null, 0, 10);
    heard.heard("yesterday", 0, 10);
    expect(Math.abs(heard.at(0) - 2000 * HOUR)).toBeLessThan(1000);
  });
});

it("pauses are drawn from twice as much each time, up to half a minute", () => {
  const longest = [0, 1, 2, 3, 4, 5, 6, 100].map((failed) => backoff(failed, () => 1));
  expect(longest).toEqual([1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  expect(backoff(6, () => 0)).toBe(100);
  expect(new Set(Array.from({ length: 50 }, () => backoff(3))).size).toBeGreaterThan(40);
});

it("a threshold says nothing of the use of others", () => {
  const message = { type: "usage_threshold", feature: "crm", percent: 80, used: 8, limit: 10, resetsAt: null } as const;
  expect(withUsage(STARTER, message).currentUsage).toEqual({ tickets: 3, crm: 8 });
  expect(withUsage({ ...STARTER, currentUsage: null }, message).currentUsage).toBeNull();
  expect(usageOf(withUsage(STARTER, message), "constructor").used).toBe(0);
});

describe("links", () => {
  it.each<[string, boolean, boolean]>([
    ["/billing/upgrade?feature=crm", true, true],
    ["https://shop.test/buy", true, false],
    ["http://127.0.0.1:8080/", true, false],
    ["//shop.test/buy", true, false],
    ["/\\evil.test", true, false],
    ["/\t/evil.test", true, false],
    ["javascript:alert(1)", false, false],
    [" javascript:alert(1)", false, false],
    ["java\nscript:alert(1)", false, false],
    ["data:text/html,x", false, false],
    ["mailto:a@b", false, false],
    ["relative", false, false],
    ["", false, false],
  ])("%j", (url, isLink, isOwn) => {
    expect([webUrl(url) !== null, isOwnPath(url)]).toEqual([isLink, isOwn]);
  });

  it("are filled in as the proxy does it, whatever the feature's name is", () => {
    expect(fillIn("/buy/{feature}?f={feature}", "a b/c")).toBe("/buy/a%20b%2Fc?f=a%20b%2Fc");
    expect(fillIn("/buy/{feature}", "\ud800")).toBe("/buy/%EF%BF%BD");
  });
});
