/** What is known of the licence, and what follows from it: pure, with time as an argument. */

import type { LicenseError, PaymentRequiredError } from "./errors.js";
import type { License, Offers, ThresholdMessage } from "./types.js";

/**
 * How long replicas may disagree after a change, in milliseconds: the proxy promises a second. What is told within it by
 * another replica than before may be the older of the two.
 */
export const SETTLING_MS = 2000;

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

/** What components read. A new object whenever something of it changes, and only then. */
export interface LicenseState {
  /** `loading`: nothing is known yet. `ready`: `license` is what holds, and null there says that there is none. */
  readonly status: "loading" | "ready";
  readonly license: License | null;
  /** What passes now: the licence's features until it ends, whether somebody said so or not. */
  readonly features: ReadonlySet<string>;
  readonly connection: Connection;
  /** Why it could not be asked for the last time; null: it could. What was known before still stands. */
  readonly error: LicenseError | null;
  /** The latest 402 that nobody has dismissed and nothing has remedied. */
  readonly denial: PaymentRequiredError | null;
  /** What is for sale; null: not asked for yet, or not told. */
  readonly offers: Offers | null;
}

/** A licence, or that there is none, as it was told at a moment of our own clock. */
export interface Told {
  readonly license: License | null;
  readonly at: number;
  /** When it ends, by the proxy's clock, unless something else is heard before; null: not at all. */
  readonly endsAt: number | null;
}

const NOTHING: ReadonlySet<string> = new Set();

/** Before anything is heard, and where a server renders. */
export const INITIAL: LicenseState = {
  status: "loading",
  license: null,
  features: NOTHING,
  connection: "idle",
  error: null,
  denial: null,
  offers: null,
};

/** How long what the proxy says is believed over its clock as we know it, which is not to the millisecond. */
const DISPUTED_MS = 500;

/** A licence that was told just now, `at` by our own clock; `clock` is the proxy's. */
export function told(license: License | null, at: number, clock: { now(): number; readonly isKnown: boolean }): Told {
  const endsAt = license && endOf(license);
  const now = clock.now();
  if (license === null || endsAt === null || endsAt > now || granted(license).size === 0) {
    return { license, at, endsAt };
  }
  // What passes has not ended, whatever the clocks say. If ours is all there is, it is wrong.
  return { license, at, endsAt: clock.isKnown ? now + DISPUTED_MS : null };
}

/**
 * Whether what is told now is to be believed over what is known, told by somebody else and asked for at `askedAt`. Revisions
 * grow; a lower one comes from a replica that is a moment behind, or, once they must have agreed, from a database that was
 * restored.
 */
export function supersedes(next: License | null, known: Told, askedAt: number): boolean {
  const isBehind = known.license !== null && (next === null || next.revision < known.license.revision);
  return !isBehind || askedAt - known.at >= SETTLING_MS;
}

/** What passes at `now`, by the proxy's clock. */
export function featuresAt({ license, endsAt }: Told, now: number): ReadonlySet<string> {
  return license === null || (endsAt !== null && endsAt <= now) ? NOTHING : granted(license);
}

/** When the licence should be looked at again though nobody says so, by the proxy's clock: it ends then, or begins. */
export function nextTurn({ license, endsAt }: Told, now: number): number | null {
  // Where something passes, it has begun, whatever the clocks say.
  const begins = license?.validFrom && granted(license).size === 0 ? Date.parse(license.validFrom) : null;
  const turns = [begins, endsAt].filter((turn) => turn !== null && turn > now) as number[];
  return turns.length === 0 ? null : Math.min(...turns);
}

/** The licence with what a threshold says of its use. */
export function withUsage(license: License, { feature, used }: ThresholdMessage): License {
  return {
    ...license,
    currentUsage: { ...license.currentUsage, [feature]: used },
  };
}

/** Whether a denial still holds of a licence that has become another one. */
export function stillDenied(denial: PaymentRequiredError, before: LicenseState, after: LicenseState): boolean {
  const { feature } = denial;
  if (feature === null || after.license === null) return true;
  if (denial.reason !== "usage_limit_exceeded") return !after.features.has(feature) || before.features.has(feature);
  const usage = usageOf(after.license, feature);
  const hasMore = usage.limit === null || usage.limit > (denial.limit ?? 0);
  const beganAnew = usage.used !== null && usage.limit !== null && usage.used < usage.limit;
  return !(hasMore || (beganAnew && after.license.currentUsage !== before.license?.currentUsage));
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
  const stored = license?.usageLimits[feature] ?? null;
  const limit = stored === null || stored < 0 ? null : stored;
  const used = license?.currentUsage ? (license.currentUsage[feature] ?? 0) : null;
  const remaining = limit === null || used === null ? null : Math.max(0, limit - used);
  return {
    limit,
    used,
    remaining,
    isExhausted: limit === 0 || remaining === 0,
  };
}

/** Until when a licence serves, grace included. */
export function endOf({ validUntil, graceUntil }: License): number | null {
  const end = graceUntil ?? validUntil;
  return end === null ? null : Date.parse(end);
}

function granted({ features }: License): ReadonlySet<string> {
  return new Set(Object.keys(features).filter((name) => features[name] === true));
}
