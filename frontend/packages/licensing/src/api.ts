/** The licence API: where it is, who asks there, and one request to it. */

import { LicenseError } from "./errors.js";
import { isObject, parse } from "./read.js";
import type { Dial } from "./socket.js";
import type { License } from "./types.js";

/** Where the licence API is, and who asks there. */
export interface LicenseOptions {
  /** The origin of the API, such as `https://api.example.com`. Default: that of the page. */
  readonly baseUrl?: string | undefined;
  /** One of `api.paths` of the proxy's configuration. Default: `/license`. */
  readonly licensePath?: string | undefined;
  /**
   * One of `api.websocket`: a path below `baseUrl`, or a URL. null: no WebSocket; the licence is asked for every half minute.
   * Default: `/ws/license`.
   */
  readonly webSocketUrl?: string | null | undefined;
  /** The tenant, where the page says it by a header. A WebSocket can't: there a cookie or `token` does. */
  readonly tenantId?: string | undefined;
  /** The header for it. Default: `X-Tenant-ID`. */
  readonly tenantHeader?: string | undefined;
  /** A signed token: sent as `Authorization: Bearer`, and as a subprotocol of the WebSocket. Asked for anew each time. */
  readonly token?: (() => string | null | Promise<string | null>) | string | null | undefined;
  /** Further headers of each request. */
  readonly headers?: (() => HeadersInit) | HeadersInit | undefined;
  /** Whether cookies are sent to another origin. Default: `same-origin`. */
  readonly credentials?: RequestCredentials | undefined;
  /** Default: the one that is there. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  /** Default: the one that is there. */
  readonly WebSocket?: typeof globalThis.WebSocket | undefined;
  /** What a server has asked for already, null where there is no licence: rendered before the first answer. */
  readonly initialLicense?: License | null | undefined;
}

/** An answer, read to its end. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** The JSON that it was; undefined: none. */
  readonly body: unknown;
  /** When the request was sent, and when the head of the answer had come, by our own clock. */
  readonly askedAt: number;
  readonly answeredAt: number;
}

/** How long an answer is waited for, with all that it takes to ask. */
const ANSWER_WITHIN_MS = 10_000;

export class LicenseApi {
  #options: LicenseOptions;
  /** Headers as they were sent last, for a request that can't wait for a token: the page is about to be left. */
  #lastHeaders: Headers | null = null;

  constructor(options: LicenseOptions) {
    this.#options = options;
  }

  configure(options: LicenseOptions): void {
    this.#options = options;
  }

  /** What tells this API and tenant from others. */
  get topic(): string {
    return `${this.#url("")} ${this.#options.tenantId ?? ""}`;
  }

  get webSocket(): typeof WebSocket | undefined {
    if (this.#options.webSocketUrl === null) return undefined;
    return this.#options.WebSocket ?? globalThis.WebSocket;
  }

  /** What the WebSocket is opened with. */
  async dial(): Promise<Dial> {
    const token = await this.#token();
    const path = this.#options.webSocketUrl ?? "/ws/license";
    const url = new URL(path.startsWith("/") ? `${this.#base()}${path}` : path, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    return { url: url.href, protocols: token ? ["dotmac-license", token] : [] };
  }

  /**
   * One request, below the path of the licence. Rejects with a `LicenseError` when there is no whole answer in time, or
   * `leave` says that nobody waits for it any more.
   */
  async ask(below: string, init: RequestInit = {}, leave?: AbortSignal): Promise<Answer> {
    const aborter = new AbortController();
    const given = new Promise<never>((_, reject) => {
      aborter.signal.addEventListener("abort", () => reject(aborter.signal.reason));
    });
    const abort = () => aborter.abort();
    const timer = setTimeout(abort, ANSWER_WITHIN_MS);
    leave?.addEventListener("abort", abort);
    if (leave?.aborted) abort();
    try {
      // A token or a body that never comes hears of no signal.
      return await Promise.race([this.#exchange(below, init, aborter.signal), given]);
    } catch (cause) {
      throw new LicenseError("There was no answer.", null, null, cause);
    } finally {
      clearTimeout(timer);
      leave?.removeEventListener("abort", abort);
    }
  }

  /** Send what nobody waits for, though the page be left at the same moment. Never fails. */
  beacon(below: string, body: string): void {
    const send = (headers: Headers) => {
      headers.set("Content-Type", "application/json");
      return this.#send(below, { method: "POST", keepalive: true, headers, body });
    };
    const { token } = this.#options;
    try {
      const told = typeof token === "function" ? token() : token;
      const waits = told instanceof Promise;
      if (waits) told.catch(() => {});
      const sent = waits && this.#lastHeaders ? send(new Headers(this.#lastHeaders)) : this.#headers().then(send);
      sent.catch(() => {});
    } catch {
      // It is lost.
    }
  }

  async #exchange(below: string, init: RequestInit, signal: AbortSignal): Promise<Answer> {
    const headers = await this.#headers();
    this.#lastHeaders = new Headers(headers);
    for (const [name, value] of new Headers(init.headers)) headers.set(name, value);
    const askedAt = Date.now();
    const response = await this.#send(below, { ...init, headers, signal });
    const answeredAt = Date.now();
    const body = parse(await response.text());
    return { status: response.status, headers: response.headers, body, askedAt, answeredAt };
  }

  #send(below: string, init: RequestInit): Promise<Response> {
    const fetch = this.#options.fetch ?? globalThis.fetch;
    const credentials = this.#options.credentials ?? "same-origin";
    return fetch(this.#url(below), { cache: "no-store", credentials, ...init });
  }

  async #headers(): Promise<Headers> {
    const { headers, tenantHeader, tenantId } = this.#options;
    const all = new Headers(typeof headers === "function" ? headers() : headers);
    all.set("Accept", "application/json");
    if (tenantId !== undefined) all.set(tenantHeader ?? "X-Tenant-ID", tenantId);
    const token = await this.#token();
    if (token) all.set("Authorization", `Bearer ${token}`);
    return all;
  }

  async #token(): Promise<string | null> {
    const { token } = this.#options;
    return (typeof token === "function" ? await token() : token) ?? null;
  }

  #url(below: string): string {
    return `${this.#base()}${this.#options.licensePath ?? "/license"}${below}`;
  }

  #base(): string {
    return (this.#options.baseUrl ?? "").replace(/\/+$/, "");
  }
}

/** What an answer says that is not what was asked for. */
export function refused({ status, body }: Answer): LicenseError {
  const members = isObject(body) ? body : {};
  const reason = typeof members.reason === "string" ? members.reason : null;
  const message = typeof members.message === "string" ? members.message : `An answer of ${status} came.`;
  return new LicenseError(message, status, reason);
}
