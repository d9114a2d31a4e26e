import { PaymentRequiredError } from "./errors.js";
import { DENIED_EVENT } from "./events.js";
import { parse, readRefusal } from "./read.js";

/**
 * The typed error of a response that the gate gave for want of a licence; null for every other one, a 402 of the backend's
 * own included. The response stays unread.
 *
 * In a browser each `LicenseProvider` of the page hears of it: it asks for the licence at once, so that an interface that
 * showed too much heals, and offers the prompt (`PaymentRequiredPrompt`).
 *
 * ```ts
 * const response = await fetch("/api/v1/crm/customers");
 * const denied = await paymentRequired(response);
 * if (denied) throw denied;
 * ```
 */
export async function paymentRequired(response: Response): Promise<PaymentRequiredError | null> {
  // `deny.status` of the proxy's configuration may set another status than 402.
  if (response.status < 400 || response.body?.locked || !isJson(response.headers.get("Content-Type"))) return null;
  const refusal = readRefusal(parse(await response.clone().text()));
  if (refusal === undefined) return null;
  const denied = new PaymentRequiredError(response.status, refusal);
  if (typeof window !== "undefined") window.dispatchEvent(new CustomEvent(DENIED_EVENT, { detail: denied }));
  return denied;
}

/** A `fetch` that throws a `PaymentRequiredError` where the gate refuses for want of a licence. */
export function licensedFetch(fetch: typeof globalThis.fetch = globalThis.fetch): typeof globalThis.fetch {
  return async (input, init) => {
    const response = await fetch(input, init);
    const denied = await paymentRequired(response);
    if (denied) throw denied;
    return response;
  };
}

function isJson(contentType: string | null): boolean {
  return /^application\/(problem\+)?json\s*(;|$)/i.test(contentType ?? "");
}
