import type { DenialReason, Refusal } from "./types.js";

/** Why the licence could not be asked for, or a request about it was refused. */
export class LicenseError extends Error {
  override readonly name = "LicenseError";
  /** The HTTP status; null: there was no answer. */
  readonly status: number | null;
  /** What the proxy calls the reason, such as `tenant_missing`; null: it was not the proxy that answered. */
  readonly reason: string | null;

  constructor(message: string, status: number | null = null, reason: string | null = null, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.status = status;
    this.reason = reason;
  }
}

/** A request was refused for a matter of the licence: the body of the 402 that answered it. */
export class PaymentRequiredError extends Error {
  override readonly name = "PaymentRequiredError";
  readonly status: number;
  readonly reason: DenialReason;
  /** The feature that was asked for. */
  readonly feature: string | null;
  /** Where a plan with it is bought. */
  readonly upgradeUrl: string | null;
  /** The tenant's plan. */
  readonly plan: string | null;
  /** The cheapest plan that would do. */
  readonly requiredPlan: string | null;
  /** All plans that would do, cheapest first. */
  readonly availableIn: readonly string[];
  /** Where a limit is used up: how much it allows. */
  readonly limit: number | null;
  /** Where a limit is used up: how much of it is used. */
  readonly used: number | null;
  /** Where a limit is used up: when counting begins anew; null: never. */
  readonly resetsAt: Date | null;
  /** By which support finds the request. */
  readonly requestId: string;

  constructor(status: number, refusal: Refusal) {
    super(refusal.message);
    this.status = status;
    this.reason = refusal.reason;
    this.feature = refusal.feature;
    this.upgradeUrl = refusal.upgrade_url;
    this.plan = refusal.plan;
    this.requiredPlan = refusal.required_plan;
    this.availableIn = refusal.available_in;
    this.limit = refusal.limit ?? null;
    this.used = refusal.used ?? null;
    this.resetsAt = refusal.resets_at ? new Date(refusal.resets_at) : null;
    this.requestId = refusal.request_id;
  }
}
