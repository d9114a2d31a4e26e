/** A proxy that is played: its licence API over a `fetch`, and its WebSocket, both under the test's control. */

import { vi } from "vitest";
import type { License, LicenseOptions, Offers, Refusal } from "../src/index.js";

export const STARTER: License = {
  planTier: "starter",
  features: { tickets: true },
  usageLimits: { tickets: 100 },
  currentUsage: { tickets: 3 },
  validFrom: "2026-11-01T00:00:00Z",
  validUntil: null,
  graceUntil: null,
  autoRenew: true,
  revision: 10,
};

export const OFFERS: Offers = {
  plans: [
    { name: "starter", features: ["tickets"], limits: { tickets: 100 } },
    { name: "professional", features: ["crm", "tickets"], limits: { tickets: 500 } },
    { name: "enterprise", features: ["crm", "tickets", "fieldops"], limits: {} },
  ],
  upgradeUrl: "/billing/upgrade?feature={feature}",
  upgrade: { mode: "apply", downgrade: false },
};

export const REFUSAL: Refusal = {
  error: "Feature not available",
  feature: "crm",
  upgrade_url: "/billing/upgrade?feature=crm",
  reason: "feature_not_in_plan",
  message: "The plan starter does not include crm.",
  plan: "starter",
  required_plan: "professional",
  available_in: ["professional", "enterprise"],
  request_id: "r-1",
};

/** A licence of professional, later than STARTER. */
export function professional(revision = 11): License {
  return { ...STARTER, planTier: "professional", features: { crm: true, tickets: true }, revision };
}

export function refusal(change: Partial<Refusal> = {}, status = 402): Response {
  return json(status, { ...REFUSAL, ...change });
}

export function json(status: number, body: unknown, headers: Record<string, string> = {}): Response {
  const text = status === 304 || status === 204 ? null : JSON.stringify(body);
  return new Response(text, { status, headers: { "Content-Type": "application/json", ...headers } });
}

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly headers: Headers;
  readonly init: RequestInit;
}

type Answer = (asked: Asked) => Response | Promise<Response>;

export class FakeSocket {
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  readonly sent: string[] = [];
  isOpen = false;
  closed = false;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {}

  open(): void {
    this.isOpen = true;
    this.onopen?.();
  }

  /** The handshake is done, and the first message comes. */
  begin(license: License | null): void {
    this.open();
    this.say({ type: "license", license });
  }

  tell(license: License | null): void {
    this.say({ type: "license_updated", license });
  }

  say(message: unknown): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  /** The other end closes it, or it could not be opened. */
  lose(code = 1006): void {
    this.isOpen = false;
    this.onclose?.({ code });
  }

  send(text: string): void {
    this.sent.push(text);
  }

  close(): void {
    this.isOpen = false;
    this.closed = true;
  }
}

export class World {
  license: License | null = STARTER;
  offers: Offers | null = OFFERS;
  readonly asked: Asked[] = [];
  readonly sockets: FakeSocket[] = [];
  /** Stands in for the answers to paths that begin so. */
  answers: Record<string, Answer> = {};
  #etags = 0;
  #tags = new Map<string, string>();

  readonly options: LicenseOptions;

  constructor(options: LicenseOptions = {}) {
    const sockets = this.sockets;
    class Socket extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        sockets.push(this);
      }
    }
    this.options = {
      baseUrl: "https://api.test",
      tenantId: "t-1",
      fetch: vi.fn(this.fetch),
      WebSocket: Socket as unknown as typeof WebSocket,
      ...options,
    };
  }

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (socket === undefined) throw new Error("no socket was opened");
    return socket;
  }

  /** How often the licence was asked for. */
  get asks(): number {
    return this.asked.filter(({ path }) => path === "/license").length;
  }

  fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const path = String(input).replace("https://api.test", "");
    const asked = { method: init.method ?? "GET", path, headers: new Headers(init.headers), init };
    this.asked.push(asked);
    const played = this.answers[path];
    if (played) return played(asked);
    if (path === "/license/plans") return this.offers ? json(200, this.offers) : json(404, {});
    if (path === "/license/upgrade-click") return json(204, null);
    return this.#licence(asked);
  };

  #licence({ headers }: Asked): Response {
    if (this.license === null) return refusal({ reason: "no_license", feature: null, upgrade_url: null });
    const document = JSON.stringify(this.license);
    if (!this.#tags.has(document)) {
      this.#etags += 1;
      this.#tags.set(document, `"tag-${this.#etags}"`);
    }
    const etag = this.#tags.get(document) ?? "";
    const date = new Date(Date.now()).toUTCString();
    if (headers.get("If-None-Match") === etag) return json(304, null, { ETag: etag, Date: date });
    return json(200, this.license, { ETag: etag, Date: date });
  }
}
