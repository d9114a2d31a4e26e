"use client";

import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import type { UpgradeResult } from "./client.js";
import { useProvided } from "./context.js";
import { LicenseError } from "./errors.js";
import { type LicenseState, own, type Usage, usageOf } from "./state.js";
import type { Offers, Plan } from "./types.js";
import { fillIn } from "./urls.js";

/** The licence, and what can be done about it. */
export interface LicenseHook extends LicenseState {
  /** Nothing is known yet: neither that there is a licence nor that there is none. */
  readonly isLoading: boolean;
  /** Whether a request for this feature passes now. */
  readonly hasFeature: (feature: string) => boolean;
  /** Ask for the licence now. */
  readonly refresh: () => Promise<void>;
  /** The latest 402 was seen. */
  readonly dismissDenial: () => void;
}

/**
 * The licence as the gate goes by it at this moment. Throws outside of a `LicenseProvider`.
 *
 * While nothing is known, `isLoading` says so; `license` being null afterwards means that there is none.
 */
export function useLicense(): LicenseHook {
  const { client } = useProvided("useLicense");
  const state = useLicenseState("useLicense", whole);
  return useMemo(
    () => ({
      ...state,
      isLoading: state.status === "loading",
      hasFeature: (feature) => state.features.has(feature),
      refresh: client.refresh,
      dismissDenial: client.dismiss,
    }),
    [client, state],
  );
}

/** Whether requests for this feature pass now. false while nothing is known yet. */
export function useFeature(name: string): boolean {
  return useLicenseState("useFeature", ({ features }) => features.has(name));
}

/** How much of a feature is used, and how much may be. */
export function useUsage(feature: string): Usage {
  const license = useLicenseState("useUsage", ({ license }) => license);
  return useMemo(() => usageOf(license, feature), [license, feature]);
}

/** What is for sale; null: not known yet. */
export function useOffers(): Offers | null {
  const { client } = useProvided("useOffers");
  useEffect(() => void client.loadOffers(), [client]);
  return useLicenseState("useOffers", ({ offers }) => offers);
}

/** Where a feature is sold, and in which plans. */
export interface Offer {
  /** Cheapest first; none: nobody sells it, or what is for sale is not known yet. */
  readonly plans: readonly Plan[];
  readonly upgradeUrl: string;
}

/** Where a feature is sold, by what the proxy says is for sale. `above`: and more of it than this. */
export function useOffer(feature: string, above: number | null = null): Offer {
  const { upgradeUrl } = useProvided("useOffer");
  const offers = useOffers();
  return useMemo(() => {
    const hasMore = ({ limits }: Plan) => above === null || (own(limits, feature) ?? Infinity) > above;
    const plans = offers?.plans.filter((plan) => plan.features.includes(feature) && hasMore(plan)) ?? [];
    return { plans, upgradeUrl: fillIn(offers?.upgradeUrl ?? upgradeUrl, feature) };
  }, [offers, upgradeUrl, feature, above]);
}

/** An upgrade, and how it goes. */
export interface UpgradeHook {
  /** Buy a plan. null: it was refused, and `error` says why. */
  readonly upgrade: (plan: string) => Promise<UpgradeResult | null>;
  readonly isPending: boolean;
  readonly error: LicenseError | null;
}

/** Buys plans. What is bought holds when the promise settles, without a reload. */
export function useUpgrade(): UpgradeHook {
  const { client } = useProvided("useUpgrade");
  const [pending, setPending] = useState(0);
  const [failed, setFailed] = useState<{ readonly client: unknown; readonly error: LicenseError } | null>(null);
  const upgrade = useCallback(
    async (plan: string) => {
      setPending((count) => count + 1);
      setFailed(null);
      try {
        return await client.upgrade(plan);
      } catch (cause) {
        const error = cause instanceof LicenseError ? cause : new LicenseError(String(cause), null, null, cause);
        setFailed({ client, error });
        return null;
      } finally {
        setPending((count) => count - 1);
      }
    },
    [client],
  );
  // What befell another tenant is no concern of this one.
  return { upgrade, isPending: pending > 0, error: failed?.client === client ? failed.error : null };
}

/** A part of the state: who reads it is rendered anew when that part becomes another. */
export function useLicenseState<T>(user: string, select: (state: LicenseState) => T): T {
  const { client } = useProvided(user);
  return useSyncExternalStore(
    client.subscribe,
    () => select(client.getState()),
    () => select(client.initial),
  );
}

function whole(state: LicenseState): LicenseState {
  return state;
}
