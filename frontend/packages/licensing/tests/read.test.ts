import { describe, expect, it } from "vitest";
import { readLicense, readMessage, readOffers, readRefusal } from "../src/read.js";
import { OFFERS, REFUSAL, STARTER } from "./world.js";

describe("a licence", () => {
  it("is read member by member, and what nobody knows is passed over", () => {
    expect(readLicense(STARTER)).toEqual(STARTER);
    expect(readLicense({ ...STARTER, seats: 7, features: { ...STARTER.features, odd: "yes" } })).toEqual(STARTER);
  });

  it("grants nothing that was not sent", () => {
    const license = readLicense(JSON.parse('{"planTier":"p","revision":1,"features":{"__proto__":{"crm":true}}}'));
    expect(license?.features.crm).toBeUndefined();
    expect(license?.features.toString).toBeUndefined();
  });

  it.each([
    ["nothing", undefined],
    ["null", null],
    ["a list", [STARTER]],
    ["a page", "<!doctype html>"],
    ["no features", { ...STARTER, features: undefined }],
    ["features in a list", { ...STARTER, features: ["crm"] }],
    ["no revision", { ...STARTER, revision: "10" }],
  ])("is not read out of %s", (_, value) => {
    expect(readLicense(value)).toBeUndefined();
  });

  it("has no end where that can't be read", () => {
    expect(readLicense({ ...STARTER, validUntil: "soon" })?.validUntil).toBeNull();
    expect(readLicense({ ...STARTER, usageLimits: null, currentUsage: null })).toMatchObject({
      usageLimits: {},
      currentUsage: null,
    });
  });
});

describe("a message", () => {
  it.each([
    ["the first", { type: "license", license: STARTER }, { type: "license", license: STARTER }],
    ["another", { type: "license_updated", license: null, x: 1 }, { type: "license_updated", license: null }],
    [
      "a threshold",
      { type: "usage_threshold", feature: "t", percent: 80, used: 80, limit: 100, resetsAt: null },
      { type: "usage_threshold", feature: "t", percent: 80, used: 80, limit: 100, resetsAt: null },
    ],
    ["a type that nobody knows", { type: "seats", license: STARTER }, undefined],
    ["a broken licence", { type: "license", license: {} }, undefined],
    ["no licence at all", { type: "license" }, undefined],
    ["half a threshold", { type: "usage_threshold", feature: "t" }, undefined],
  ])("%s", (_, sent, read) => {
    expect(readMessage(JSON.stringify(sent))).toEqual(read);
  });

  it("that is no JSON, or no text, is none", () => {
    expect(readMessage("{")).toBeUndefined();
    expect(readMessage(new ArrayBuffer(2))).toBeUndefined();
  });
});

describe("a refusal", () => {
  it("is read, with what there is to say of a limit", () => {
    expect(readRefusal(REFUSAL)).toEqual(REFUSAL);
    const limited = { ...REFUSAL, reason: "usage_limit_exceeded", limit: 3, used: 3, resets_at: null } as const;
    expect(readRefusal(limited)).toEqual(limited);
    expect(readRefusal({ ...REFUSAL, type: "urn:x", title: "t", status: 402, detail: "d" })).toEqual(REFUSAL);
  });

  it.each([
    ["the backend's own 402", { error: "card declined" }],
    ["another reason", { ...REFUSAL, reason: "tenant_missing" }],
    ["no request id", { ...REFUSAL, request_id: undefined }],
    ["null", null],
  ])("%s is none", (_, value) => {
    expect(readRefusal(value)).toBeUndefined();
  });
});

it("offers are read, and plans that can't be are left out", () => {
  expect(readOffers(OFFERS)).toEqual(OFFERS);
  expect(readOffers({ ...OFFERS, upgrade: null, plans: [null, {}, ...OFFERS.plans] })).toEqual({
    ...OFFERS,
    upgrade: null,
  });
  expect(readOffers({ ...OFFERS, upgrade: { mode: "later" } })?.upgrade).toBeNull();
  expect(readOffers({ plans: [] })).toBeUndefined();
});
