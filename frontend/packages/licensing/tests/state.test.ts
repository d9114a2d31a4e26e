import { describe, expect, it } from "vitest";
import { backoff } from "../src/backoff.js";
import { ServerClock } from "../src/clock.js";
import { PaymentRequiredError } from "../src/errors.js";
import { featuresAt, INITIAL, nextTurn, stillDenied, supersedes, told, usageOf } from "../src/state.js";
import type { License } from "../src/types.js";
import { professional, REFUSAL, STARTER } from "./world.js";

const HOUR = 3_600_000;
const NOON = Date.parse("2026-12-01T12:00:00Z");
const at = (hours: number) => new Date(NOON + hours * HOUR).toISOString();
const clock = (now: number, isKnown = true) => ({ now: () => now, isKnown });

describe("what passes", () => {
  it.each([
    ["for ever", {}, 1000, true],
    ["before the end", { validUntil: at(1) }, 0.999, true],
    ["on the dot", { validUntil: at(1) }, 1, false],
    ["in grace", { validUntil: at(1), graceUntil: at(73) }, 72.9, true],
    ["after it", { validUntil: at(1), graceUntil: at(73) }, 73, false],
  ])("%s", (_, change, hours, passes) => {
    const known = told({ ...STARTER, ...change }, 0, clock(NOON));
    expect(featuresAt(known, NOON + hours * HOUR).has("tickets")).toBe(passes);
  });

  it("is nothing that is not true, and nothing without a licence", () => {
    const odd = { ...STARTER, features: { tickets: true, crm: false } };
    expect([...featuresAt(told(odd, 0, clock(NOON)), NOON)]).toEqual(["tickets"]);
    expect(featuresAt(told(null, 0, clock(NOON)), NOON).size).toBe(0);
  });

  it("is what the proxy says where the clocks contradict it", () => {
    const ended = { ...STARTER, validUntil: at(-1) };
    // Ours is all there is: it is wrong.
    expect(featuresAt(told(ended, 0, clock(NOON, false)), NOON + 1000 * HOUR).size).toBe(1);
    // The proxy's is known, not to the millisecond: soon it is asked again.
    const soon = told(ended, 0, clock(NOON));
    expect([featuresAt(soon, NOON).size, featuresAt(soon, NOON + 500).size]).toEqual([1, 0]);
    const nothing = told({ ...ended, features: {} }, 0, clock(NOON, false));
    expect(nothing.endsAt).toBe(NOON - HOUR);
  });
});

it.each<[string, Partial<License>, number | null]>([
  ["nothing to come", {}, null],
  ["it begins", { validFrom: at(2), validUntil: at(5), features: {} }, 2],
  ["it has begun by another clock", { validFrom: at(2), validUntil: at(5) }, 5],
  ["it ends", { validUntil: at(5) }, 5],
  ["its grace ends", { validUntil: at(5), graceUntil: at(9) }, 9],
  ["it has ended", { validUntil: at(-5), features: {} }, null],
])("the next turn: %s", (_, change, hours) => {
  const turn = nextTurn(told({ ...STARTER, ...change }, 0, clock(NOON)), NOON);
  expect(turn === null ? null : (turn - NOON) / HOUR).toBe(hours);
});

it.each<[string, number | null, number | null, number, boolean]>([
  ["a later one", 11, 10, 0, true],
  ["the same", 10, 10, 0, true],
  ["an earlier one, from a replica that is behind", 9, 10, 0, false],
  ["an earlier one, asked for when all had heard", 9, 10, 2000, true],
  ["none, while a replica may not have heard", null, 10, 1999, false],
  ["none, asked for when all had heard", null, 10, 2000, true],
  ["one after there was none", 1, null, 0, true],
  ["none after none", null, null, 0, true],
])("%s supersedes what is known: %s after %s", (_, next, known, later, expected) => {
  const license = (revision: number | null) => revision && { ...STARTER, revision };
  const before = told(license(known) || null, 5000, clock(NOON));
  expect(supersedes(license(next) || null, before, 5000 + later)).toBe(expected);
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
  it.each<[string, typeof REFUSAL, License | null, License | null, boolean]>([
    ["of a feature that is bought", REFUSAL, STARTER, professional(), false],
    ["while the page was wrong", REFUSAL, professional(), professional(12), true],
    ["and is still missing", REFUSAL, STARTER, { ...STARTER, revision: 12 }, true],
    ["without a licence any more", REFUSAL, STARTER, null, true],
    ["of a limit that was raised", limited, used(100), used(100, 500), false],
    ["of a limit that is gone", limited, used(100), used(100, null), false],
    ["of a limit that stands", limited, used(100), used(100), true],
    ["of a limit that counts anew", limited, used(100), used(0), false],
  ])("%s", (_, refused, before, after, holds) => {
    expect(stillDenied(new PaymentRequiredError(402, refused), state(before), state(after))).toBe(holds);
  });
});

describe("the proxy's clock", () => {
  it("is narrowed down to milliseconds by answers that tell it to the second", () => {
    const ahead = 7 * HOUR + 123;
    const heard = new ServerClock();
    expect(heard.isKnown).toBe(false);
    for (let sent = 0; sent < 60_000; sent += 1237) {
      const written = Math.floor((sent + 20 + ahead) / 1000) * 1000;
      heard.heard(new Date(written).toUTCString(), sent, sent + 40);
    }
    expect(Math.abs(heard.now() - Date.now() - ahead)).toBeLessThan(60);
  });

  it("is the latest where one of the clocks was set", () => {
    const heard = new ServerClock();
    heard.heard(new Date(1000 * HOUR).toUTCString(), 0, 10);
    heard.heard(new Date(2000 * HOUR).toUTCString(), 0, 10);
    heard.heard(null, 0, 10);
    heard.heard("yesterday", 0, 10);
    expect(Math.abs(heard.now() - Date.now() - 2000 * HOUR)).toBeLessThan(1000);
  });
});

it("pauses double up to half a minute, and differ from tab to tab", () => {
  const longest = [0, 1, 2, 3, 4, 5, 6, 7, 100].map((failed) => backoff(failed, () => 1));
  expect(longest).toEqual([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  expect(backoff(6, () => 0)).toBe(15_000);
  expect(new Set(Array.from({ length: 50 }, () => backoff(3))).size).toBeGreaterThan(40);
});
