"use client";

import type { ReactElement, ReactNode } from "react";
import { useLicenseState } from "./hooks.js";
import { UpgradePrompt } from "./UpgradePrompt.js";

export interface FeatureGateProps {
  readonly feature: string;
  /** What is rendered for those who have the feature. A function is not even called for the others. */
  readonly children: ReactNode | (() => ReactNode);
  /** What others see. Default: an `UpgradePrompt`; null: nothing. */
  readonly fallback?: ReactNode;
  /** What is seen while nothing is known yet. Default: nothing. */
  readonly loading?: ReactNode;
}

/** Renders what belongs to a feature where requests for it pass, and nothing of it elsewhere. */
export function FeatureGate({ feature, children, fallback, loading = null }: FeatureGateProps): ReactElement {
  const passes = useLicenseState("FeatureGate", ({ status, features }) =>
    status === "loading" ? null : features.has(feature),
  );
  if (passes === null) return <>{loading}</>;
  if (passes) return <>{typeof children === "function" ? children() : children}</>;
  return <>{fallback === undefined ? <UpgradePrompt feature={feature} /> : fallback}</>;
}
