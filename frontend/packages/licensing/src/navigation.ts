"use client";

import { useMemo } from "react";
import { useLicense } from "./hooks.js";
import { NAVIGATION, type NavigationEntry } from "./modules.js";

/** The entries whose features pass now. While nothing is known yet: those that need none. Default: DotMac's. */
export function useNavigation(): readonly NavigationEntry[];
export function useNavigation<Entry extends { readonly feature?: string | undefined }>(
  entries: readonly Entry[],
): readonly Entry[];
export function useNavigation(entries: readonly NavigationEntry[] = NAVIGATION): readonly NavigationEntry[] {
  const { features } = useLicense();
  return useMemo(
    () => entries.filter(({ feature }) => feature === undefined || features.has(feature)),
    [entries, features],
  );
}
