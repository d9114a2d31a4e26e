import { licensedFetch } from "@dotmac/licensing";
import { createContext, useContext } from "react";
import type { Settings } from "./settings.js";

/** What a call of the backend came to. */
export interface Answer {
  readonly status: number;
  readonly text: string;
}

/** A call of the backend. What the gate refuses for want of a licence is a `PaymentRequiredError`, and offers the prompt. */
export type Call = (method: string, path: string) => Promise<Answer>;

export function caller(settings: Settings): Call {
  const fetch = licensedFetch();
  return async (method, path) => {
    const headers = new Headers(settings.headers);
    if (settings.token) headers.set("Authorization", `Bearer ${settings.token}`);
    const response = await fetch(`${settings.baseUrl}${path}`, { method, headers, cache: "no-store" });
    return { status: response.status, text: await response.text() };
  };
}

export const CallContext = createContext<Call | null>(null);

export function useCall(): Call {
  const call = useContext(CallContext);
  if (call === null) throw new Error("useCall is used outside of the portal");
  return call;
}
