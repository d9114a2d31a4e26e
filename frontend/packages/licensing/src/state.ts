/** What is known of the licence, and what follows from it: pure, with time as an argument. */

import type { LicenseError, PaymentRequiredError } from "./errors.js";
import type { License, Offers, ThresholdMessage } from "./types.js";

/**
 * How long replicas may disagree after a change, in milliseconds: the proxy promises a second. What is told within it by
 * another replica than before may be the older of the two.
 */
export const SETTLING_MS = 2000;

/** How long after a licence's end the proxy and its clock may contradict each other: replicas' clocks differ a little. */
const DISPUTE_MS = 60_000;

/** How the licence is kept up to date at the moment. */
export type Connection =
  /** Not begun, or ended. */
  | "idle"
  /** The first WebSocket is being opened. */
  | "connecting"
  /** Changes are told as they happen. */
  | "live"
  /** The WebSocket is away and tried again; meanwhile the licence is asked for. */
  | "reconnecting"
  /** There is no WebSocket: the licence is asked for now and then. */
  | "polling";

/** How a licence stands at a moment. */
export type Standing = "none" | "not_begun" | "valid" | "ended";

/** What components read. A new object whenever something of it changes, and only then. */
export interface LicenseState {
  /** `loading`: nothing is known yet. `ready`: `license` is what holds, and null there says that there is none. */
  readonly status: "loading" | "ready";
  /** The document as it was told. What passes now is in `features` beside it. */
  readonly license: License | null;
  /** What passes now: the licence's features until it ends, whether somebody said so or not. */
  readonly features: ReadonlySet<string>;
  readonly standing: Standing;
  readonly connection: Connection;
  /** Why it could not be asked for the last time; null: it could, or has been told since. What was known still stands. */
  readonly error: LicenseError | null;
  /** The latest 402 that nobody has dismissed and nothing has remedied. */
  readonly denial: PaymentRequiredError | null;
  /** What is for sale; null: not asked for yet, or not told. */
  readonly offers: Offers | null;
}

/** A licence, or that there is none, as it was told. */
export interface Known {
  readonly license: License | null;
  /** Of the licence, or of the last one that there was. */
  readonly revision: number;
  /** It was so at this moment of our own clock, or later: when it was asked for, or came unasked. */
  readonly at: number;
}

/** The proxy's clock, as far as it is known. */
export interface Clock {
  at(ours: number): number;
  now(): number;
}

const NOTHING: ReadonlySet<string> = new Set();

/** Before anything is heard. */
export const INITIAL: LicenseState = {
  status: "loading",
  license: null,
  features: NOTHING,
  standing: "none",
  connection: "idle",
  error: null,
  denial: null,
  offers: null,
};

/** The state where a server renders, and where a browser takes that over: by the document alone, whatever the clocks say. */
export function initialState(license: License | null | undefined): LicenseState {
  if (license === undefined) return INITIAL;
  const features = license === null ? NOTHING : granted(license);
  return { ...INITIAL, status: "ready", license, features, standing: license === null ? "none" : "valid" };
}

/**
 * Whether what is told is older than what is known: by a replica that has not heard of the last change, or by an answer to
 * what was asked, `askedAt`, before the last was told.
 */
export function isBehind(next: License | null, known: Known, askedAt: number): boolean {
  if (next === null) return known.license !== null;
  if (next.revision !== known.revision) return next.revision < known.revision;
  return known.license === null || askedAt < known.at;
}

/** Whether all replicas must have agreed when something was asked: whatever is told then was not told out of turn. */
export function isSettled(known: Known, askedAt: number): boolean {
  return askedAt - known.at >= SETTLING_MS;
}

/** What passes now. */
export function featuresNow(known: Known, clock: Clock): ReadonlySet<string> {
  return known.license === null || hasEndedSince(known, clock) ? NOTHING : granted(known.license);
}

/** How the licence stands now. */
export function standingNow(known: Known, clock: Clock): Standing {
  const { license } = known;
  if (license === null) return "none";
  if (hasEndedSince(known, clock)) return "ended";
  if (granted(license).size > 0) return "valid";
  const [begin, end] = [beginOf(license), endOf(license)];
  if (end !== null && end <= clock.now()) return "ended";
  return begin !== null && begin > clock.now() ? "not_begun" : "valid";
}

/** Whether the proxy lets pass what has ended by its own clock, for so little that one of its replicas must see it soon. */
export function isDisputed({ license, at }: Known, clock: Clock): boolean {
  const late = license === null || granted(license).size === 0 ? -1 : clock.at(at) - (endOf(license) ?? Infinity);
  return late >= 0 && late < DISPUTE_MS;
}

/** When the licence should be looked at again though nobody says so, by the proxy's clock: it ends then, or begins. */
export function nextTurn({ license }: Known, clock: Clock): number | null {
  if (license === null) return null;
  // Where something passes, it has begun, whatever the clocks say.
  const begins = granted(license).size === 0 ? beginOf(license) : null;
  const turns = [begins, endOf(license)].filter((turn) => turn !== null && turn > clock.now()) as number[];
  return turns.length === 0 ? null : Math.min(...turns);
}

/** The licence with what a threshold says of its use; as it was where nothing is known of the use of the others. */
export function withUsage(license: License, { feature, used }: ThresholdMessage): License {
  const { currentUsage } = license;
  return currentUsage === null ? license : { ...license, currentUsage: { ...currentUsage, [feature]: used } };
}

/** Whether a licence has what a call was denied for want of. */
export function hasWanted(denial: PaymentRequiredError, { license, features }: LicenseState): boolean {
  const { feature, reason } = denial;
  if (license === null || feature === null) return license !== null;
  if (reason !== "usage_limit_exceeded") return features.has(feature);
  return (usageOf(license, feature).limit ?? Infinity) > (denial.limit ?? 0);
}

/** Whether a denial still holds of a licence that has become another one. */
export function stillDenied(denial: PaymentRequiredError, before: LicenseState, after: LicenseState): boolean {
  return !hasWanted(denial, after) || hasWanted(denial, before);
}

/** How much of a feature is used, and how much may be. */
export interface Usage {
  /** null: unlimited. */
  readonly limit: number | null;
  /** null: not known now. */
  readonly used: number | null;
  /** null: unlimited, or not known now. */
  readonly remaining: number | null;
  readonly isExhausted: boolean;
}

/** The use of a feature, as the licence's document tells it. */
export function usageOf(license: License | null, feature: string): Usage {
  const stored = (license && own(license.usageLimits, feature)) ?? null;
  const limit = stored === null || stored < 0 ? null : stored;
  const used = license?.currentUsage ? (own(license.currentUsage, feature) ?? 0) : null;
  const remaining = limit === null || used === null ? null : Math.max(0, limit - used);
  return { limit, used, remaining, isExhausted: limit === 0 || remaining === 0 };
}

/** A member that was sent under this name. */
export function own<T>(members: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(members, name) ? members[name] : undefined;
}

/** Until when a licence serves, grace included. */
export function endOf({ validUntil, graceUntil }: License): number | null {
  const end = graceUntil ?? validUntil;
  return end === null ? null : Date.parse(end);
}

function beginOf({ validFrom }: License): number | null {
  return validFrom === null ? null : Date.parse(validFrom);
}

/** Whether its end has passed since it was told: what was told after that was told in spite of it. */
function hasEndedSince({ license, at }: Known, clock: Clock): boolean {
  const end = license && endOf(license);
  return end !== null && end <= clock.now() && end > clock.at(at);
}

function granted({ features }: License): ReadonlySet<string> {
  return new Set(Object.keys(features).filter((name) => features[name] === true));
}
