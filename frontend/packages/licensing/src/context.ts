"use client";

import { createContext, type JSXElementConstructor, type MouseEventHandler, type ReactNode, useContext } from "react";
import type { LicenseClient } from "./client.js";

/** What a provider gives to what is below it. */
export interface Provided {
  readonly client: LicenseClient;
  /** Where plans are bought, as long as the proxy has not said it. */
  readonly upgradeUrl: string;
  /** What features and plans are called. */
  readonly label: (name: string) => string;
  /** What links are rendered with. */
  readonly Link: LinkComponent;
  /** Have screen readers say something; what is returned takes it back. */
  readonly announce: (text: string, urgency: Urgency) => () => void;
}

/** `polite`: when the reader pauses. `assertive`: at once. */
export type Urgency = "polite" | "assertive";

/** A router's link, such as Next.js's or wouter's; by default `a`. */
export type LinkComponent =
  | "a"
  | JSXElementConstructor<{
      href: string;
      className?: string;
      onClick?: MouseEventHandler;
      onAuxClick?: MouseEventHandler;
      children?: ReactNode;
    }>;

export const LicenseContext = createContext<Provided | null>(null);

/** What the nearest provider gives. */
export function useProvided(user: string): Provided {
  const provided = useContext(LicenseContext);
  if (provided === null) {
    throw new Error(`${user} is used outside of <LicenseProvider>: put one around the application's root`);
  }
  return provided;
}
