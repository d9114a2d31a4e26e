/** Reads what comes from outside: what is not as described is nothing, and members that nobody knows are passed over. */

import type { DenialReason, License, Offers, Plan, Refusal, WebSocketMessage } from "./types.js";
import { webUrl, wellFormed } from "./urls.js";

type Members = Record<string, unknown>;

const REASONS: readonly DenialReason[] = [
  "feature_not_in_plan",
  "no_license",
  "license_expired",
  "license_not_yet_valid",
  "usage_limit_exceeded",
];

/** The licence in a document; undefined: it is none. */
export function readLicense(value: unknown): License | undefined {
  if (!isObject(value) || typeof value.planTier !== "string" || !isObject(value.features)) return undefined;
  if (typeof value.revision !== "number") return undefined;
  return {
    planTier: value.planTier,
    features: pick(value.features, (granted): granted is boolean => typeof granted === "boolean"),
    usageLimits: isObject(value.usageLimits) ? pick(value.usageLimits, isNumberOrNull) : {},
    currentUsage: isObject(value.currentUsage) ? pick(value.currentUsage, isNumber) : null,
    validFrom: timeOrNull(value.validFrom),
    validUntil: timeOrNull(value.validUntil),
    graceUntil: timeOrNull(value.graceUntil),
    autoRenew: value.autoRenew === true,
    revision: value.revision,
  };
}

/** A message of the WebSocket; undefined: none that this version knows. */
export function readMessage(text: unknown): WebSocketMessage | undefined {
  const value = typeof text === "string" ? parse(text) : undefined;
  if (!isObject(value)) return undefined;
  switch (value.type) {
    case "license":
    case "license_updated": {
      const license = value.license === null ? null : readLicense(value.license);
      return license === undefined ? undefined : { type: value.type, license };
    }
    case "usage_threshold": {
      const { feature, percent, used, limit, resetsAt } = value;
      if (typeof feature !== "string" || !isNumber(percent) || !isNumber(used) || !isNumber(limit)) return undefined;
      return {
        type: "usage_threshold",
        feature,
        percent,
        used,
        limit,
        resetsAt: timeOrNull(resetsAt),
      };
    }
    default:
      return undefined;
  }
}

/** The refusal in a body, plain or as a problem document; undefined: somebody else's, or no matter of a licence. */
export function readRefusal(value: unknown): Refusal | undefined {
  if (!isObject(value) || typeof value.error !== "string" || typeof value.request_id !== "string") return undefined;
  const reason = REASONS.find((reason) => reason === value.reason);
  if (reason === undefined || !("feature" in value) || !("upgrade_url" in value)) return undefined;
  return {
    error: value.error,
    feature: textOrNull(value.feature),
    upgrade_url: typeof value.upgrade_url === "string" ? webUrl(value.upgrade_url) : null,
    reason,
    message: textOrNull(value.message) ?? value.error,
    plan: textOrNull(value.plan),
    required_plan: textOrNull(value.required_plan),
    available_in: texts(value.available_in),
    ...(isNumber(value.limit) && { limit: value.limit }),
    ...(isNumber(value.used) && { used: value.used }),
    ...("resets_at" in value && { resets_at: timeOrNull(value.resets_at) }),
    request_id: value.request_id,
  };
}

/** What is for sale; undefined: nothing that can be read. */
export function readOffers(value: unknown): Offers | undefined {
  if (!isObject(value) || !Array.isArray(value.plans) || typeof value.upgradeUrl !== "string") return undefined;
  const upgradeUrl = webUrl(value.upgradeUrl);
  if (upgradeUrl === null) return undefined;
  const { mode, downgrade } = isObject(value.upgrade) ? value.upgrade : {};
  const upgrade = mode === "apply" || mode === "request" ? ({ mode, downgrade: downgrade === true } as const) : null;
  const plans = value.plans.map(readPlan).filter((plan) => plan !== undefined);
  return { plans, upgradeUrl, upgrade };
}

/** The value of a JSON text; undefined: it is none. */
export function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function isObject(value: unknown): value is Members {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readPlan(value: unknown): Plan | undefined {
  if (!isObject(value) || typeof value.name !== "string") return undefined;
  const limits = isObject(value.limits) ? pick(value.limits, isNumber) : {};
  return { name: value.name, features: texts(value.features), limits };
}

/** The members whose values fit. Without a prototype, so that no name is there that nobody sent. */
function pick<T>(members: Members, fits: (value: unknown) => value is T): Record<string, T> {
  const picked: Record<string, T> = Object.create(null);
  for (const [name, value] of Object.entries(members)) {
    if (fits(value)) picked[name] = value;
  }
  return picked;
}

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

function isNumberOrNull(value: unknown): value is number | null {
  return value === null || isNumber(value);
}

function textOrNull(value: unknown): string | null {
  return typeof value === "string" ? wellFormed(value) : null;
}

function timeOrNull(value: unknown): string | null {
  return typeof value === "string" && !Number.isNaN(Date.parse(value)) ? value : null;
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
}
