"use client";

import type { ReactElement } from "react";
import { useFeature, useLicenseState, useUsage } from "./hooks.js";
import { UpgradePrompt, type UpgradePromptProps } from "./UpgradePrompt.js";

export type UsageLimitReachedProps = Omit<UpgradePromptProps, "denial">;

/** Says that a feature's limit is used up, when there will be more and which plans have it. Nothing where it is not. */
export function UsageLimitReached(props: UsageLimitReachedProps): ReactElement | null {
  const { feature, className = "dotmac-usage-limit" } = props;
  const isLicensed = useFeature(feature);
  const { isExhausted } = useUsage(feature);
  const denial = useLicenseState("UsageLimitReached", ({ denial }) =>
    denial?.reason === "usage_limit_exceeded" && denial.feature === feature ? denial : undefined,
  );
  if (!isLicensed || !(isExhausted || denial)) return null;
  return <UpgradePrompt {...props} className={className} denial={denial} />;
}
