/**
 * What the proxy sends, member by member. A test writes down real answers and has the compiler hold them against these types.
 *
 * Members that are not named here may come too: the API can grow.
 */

/** A tenant's licence, as `GET /license` and the WebSocket tell it. */
export interface License {
  /** The name of the plan. It says what was bought; `features` says what passes. */
  readonly planTier: string;
  /** Each feature that a request would pass with at the moment the document was made. */
  readonly features: Readonly<Record<string, boolean>>;
  /** Limits by feature. Absent, null or negative: unlimited; 0: none. */
  readonly usageLimits: Readonly<Record<string, number | null>>;
  /** How often each feature was used in the current period of its limit; null: not known now. */
  readonly currentUsage: Readonly<Record<string, number>> | null;
  /** From when it holds (RFC 3339); null: it always has. */
  readonly validFrom: string | null;
  /** Until when it holds; null: for ever. */
  readonly validUntil: string | null;
  /** Until when it is served after its end, awaiting renewal; null: it is not. */
  readonly graceUntil: string | null;
  readonly autoRenew: boolean;
  /** Grows with every change. */
  readonly revision: number;
}

/** Why the gate refuses a request for a matter of the licence. */
export type DenialReason =
  | "feature_not_in_plan"
  | "no_license"
  | "license_expired"
  | "license_not_yet_valid"
  | "usage_limit_exceeded";

/** The body of a 402. */
export interface Refusal {
  /** A title for people. */
  readonly error: string;
  /** The feature that was asked for; null where none is concerned. */
  readonly feature: string | null;
  /** Where a plan with it is bought. */
  readonly upgrade_url: string | null;
  readonly reason: DenialReason;
  /** A sentence for people. */
  readonly message: string;
  /** The tenant's plan. */
  readonly plan: string | null;
  /** The cheapest plan with the feature; where a limit is used up, with a higher one. */
  readonly required_plan: string | null;
  /** The plans with the feature, cheapest first; where a limit is used up, those with a higher one. */
  readonly available_in: readonly string[];
  /** Where a limit is used up: how much it allows, how much is used, and when counting begins anew (null: never). */
  readonly limit?: number;
  readonly used?: number;
  readonly resets_at?: string | null;
  /** By which support finds the request in the access log. */
  readonly request_id: string;
}

/** The first message of a WebSocket (`license`) and each further one about the licence. null: there is none. */
export interface LicenseMessage {
  readonly type: "license" | "license_updated";
  readonly license: License | null;
}

/** A share of a limit is used up, for the first time in its period. */
export interface ThresholdMessage {
  readonly type: "usage_threshold";
  readonly feature: string;
  /** Which share. */
  readonly percent: number;
  readonly used: number;
  readonly limit: number;
  /** When counting begins anew; null: never. */
  readonly resetsAt: string | null;
}

/** What comes on the WebSocket. Messages of other types are passed over. */
export type WebSocketMessage = LicenseMessage | ThresholdMessage;

/** A plan that is sold. */
export interface Plan {
  readonly name: string;
  readonly features: readonly string[];
  /** Limits by feature; absent: unlimited. */
  readonly limits: Readonly<Record<string, number>>;
}

/** What is for sale, as `GET /license/plans` tells it. */
export interface Offers {
  /** Cheapest first. */
  readonly plans: readonly Plan[];
  /** Where a plan is bought; `{feature}` in it stands for the feature. */
  readonly upgradeUrl: string;
  /** Whether one request buys another plan, and how; null: it does not. */
  readonly upgrade: {
    readonly mode: "apply" | "request";
    readonly downgrade: boolean;
  } | null;
}
