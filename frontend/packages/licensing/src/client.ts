/**
 * Keeps what is known of one tenant's licence up to date: asks for it, listens for changes, and watches the clock. Knows
 * nothing of React, and touches nothing of a browser before `start`.
 */

import { ServerClock } from "./clock.js";
import { LicenseError, PaymentRequiredError } from "./errors.js";
import { DENIED_EVENT, REFRESH_EVENT } from "./events.js";
import { isObject, parse, readLicense, readMessage, readOffers } from "./read.js";
import { ReconnectingSocket } from "./socket.js";
import {
  type Connection,
  featuresAt,
  INITIAL,
  type LicenseState,
  nextTurn,
  SETTLING_MS,
  stillDenied,
  supersedes,
  type Told,
  told,
  withUsage,
} from "./state.js";
import { Tabs } from "./tabs.js";
import type { License, Offers, WebSocketMessage } from "./types.js";

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
  /** The licence that a server has asked for already: what is rendered before the first answer. */
  readonly initialLicense?: License | undefined;
}

/** What became of an upgrade. */
export type UpgradeResult =
  /** The plan is bought, and holds from now on. */
  | { readonly status: "applied"; readonly license: License }
  /** It is written down that it is wanted; billing applies it. */
  | { readonly status: "requested" };

/** How long an answer is waited for. */
const ANSWER_WITHIN_MS = 10_000;

/** How often the licence is asked for where there is no WebSocket at all. */
const POLL_EVERY_MS = 30_000;

/** After how long without a word it is asked for although a WebSocket is open. */
const REVALIDATE_AFTER_MS = 5 * 60_000;

/** How old what is known may be when somebody comes back to the tab. */
const FRESH_FOR_MS = 10_000;

/** How often the tab looks at its clock, and after what leap of it it must have been asleep. Hidden tabs look once a minute. */
const TICK_MS = 10_000;
const ASLEEP_AFTER_MS = 130_000;

/** After how long an upgrade is asked for once more whose outcome is not known. */
const UPGRADE_AGAIN_AFTER_MS = 1000;

/** A timer can't be set for longer. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** How long what is for sale is not asked for again. */
const OFFERS_FRESH_FOR_MS = 5 * 60_000;

export class LicenseClient {
  #options: LicenseOptions;
  #state: LicenseState = INITIAL;
  readonly #listeners = new Set<() => void>();
  readonly #clock = new ServerClock();
  #told: Told | null = null;
  /** The last revision that the open WebSocket has told; null: nothing yet, or that there is no licence. */
  #toldBySocket: number | null | undefined;
  /** The document that was asked for last, by the tag it came with. */
  #tagged: { readonly tag: string; readonly license: License } | null = null;
  #asking: Promise<void> | null = null;
  /** Settled by the request after the one that is under way. */
  #askingNext: Promise<void> | null = null;
  #running = 0;
  #cleanUp: (() => void)[] = [];
  #socket: ReconnectingSocket | null = null;
  #tabs: Tabs | null = null;
  #turn: ReturnType<typeof setTimeout> | undefined;
  #settling: ReturnType<typeof setTimeout> | undefined;
  /** When a limit begins to be counted anew that is known to be used up, by the proxy's clock. */
  #resetsAt: number | null = null;
  /** Headers as they were sent last, for the request that can't wait: the page is about to be left. */
  #lastHeaders: Headers | null = null;
  #offersAskedAt: number | null = null;
  /** The state before anything was heard: what a server renders, and a browser while it takes that over. */
  readonly initial: LicenseState;

  constructor(options: LicenseOptions) {
    this.#options = options;
    if (options.initialLicense) this.#accept(options.initialLicense);
    this.initial = this.#state;
  }

  /** Now, by the proxy's clock as far as it is known. */
  now(): number {
    return this.#clock.now();
  }

  /** Other functions, tokens and headers from now on. What identifies API and tenant stays. */
  configure(options: LicenseOptions): void {
    this.#options = options;
  }

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  getState = (): LicenseState => this.#state;

  /** Begin; what is returned ends it. May be begun again. */
  start(): () => void {
    this.#running += 1;
    const run = this.#running;
    this.#listen();
    this.#setTurn();
    if (this.#options.webSocketUrl === null || this.#webSocket() === undefined) this.#poll();
    else this.#openSocket();
    void this.#ask();
    return () => {
      if (run === this.#running) this.#stop();
    };
  }

  /** Ask for the licence now. Settles when there is an answer to a request that began after this call, whatever it is. */
  refresh = (): Promise<void> => {
    this.#socket?.wake();
    return this.#askAnew();
  };

  /** Buy another plan. Rejects with a `LicenseError` if it is refused. */
  upgrade = async (plan: string): Promise<UpgradeResult> => {
    const key = idempotencyKey();
    const request = () =>
      this.#request("/upgrade", {
        method: "POST",
        body: JSON.stringify({ new_plan: plan }),
        headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      });
    const askedAt = Date.now();
    let response = await request().catch(() => null);
    if (response === null || response.status === 503) {
      // It may have been made or not: the same key tells, and buys nothing twice.
      await new Promise((resolve) => setTimeout(resolve, UPGRADE_AGAIN_AFTER_MS));
      response = await request();
    }
    const body = parse(await response.text());
    if (response.status === 202) return { status: "requested" };
    const license = response.ok ? readLicense(body) : undefined;
    if (license === undefined) throw refused(response, body);
    this.#hear(license, askedAt);
    this.#tabs?.tell(license.revision, false);
    return { status: "applied", license };
  };

  /** Say that a person follows the way to an upgrade, though the page be left at the same moment. Never fails. */
  clicked = (feature: string): void => {
    const send = (headers: Headers) => {
      headers.set("Content-Type", "application/json");
      const body = JSON.stringify({ feature });
      return this.#send("/upgrade-click", {
        method: "POST",
        keepalive: true,
        headers,
        body,
      });
    };
    const sent = this.#lastHeaders ? send(new Headers(this.#lastHeaders)) : this.#headers().then(send);
    sent.catch(() => {});
  };

  /** Ask what is for sale, unless that is known. Never fails: `offers` stays as it is. */
  loadOffers = async (): Promise<void> => {
    const now = Date.now();
    if (this.#offersAskedAt !== null && now - this.#offersAskedAt < OFFERS_FRESH_FOR_MS) return;
    this.#offersAskedAt = now;
    try {
      const response = await this.#request("/plans", {});
      const offers = response.ok ? readOffers(parse(await response.text())) : undefined;
      if (offers && !same(offers, this.#state.offers)) this.#set({ offers });
    } catch {
      // Next time.
      this.#offersAskedAt = null;
    }
  };

  /** A call was refused: what the page shows is out of date, or its user has met a limit. */
  denied = (denial: PaymentRequiredError): void => {
    this.#set({ denial });
    if (denial.resetsAt) this.#setReset(denial.resetsAt.getTime());
    this.#tabs?.tell(this.#revision(), true);
    void this.#askAnew();
  };

  /** The denial was seen. */
  dismiss = (): void => {
    if (this.#state.denial !== null) this.#set({ denial: null });
  };

  // What happens around the page.

  #listen(): void {
    const on = (target: EventTarget, name: string, listener: (event: Event) => void) => {
      target.addEventListener(name, listener);
      this.#cleanUp.push(() => target.removeEventListener(name, listener));
    };
    if (typeof window !== "undefined") {
      on(window, REFRESH_EVENT, () => {
        this.#tabs?.tell(this.#revision(), true);
        void this.refresh();
      });
      on(window, DENIED_EVENT, (event) => {
        const denial = (event as CustomEvent).detail;
        if (denial instanceof PaymentRequiredError) this.denied(denial);
      });
      on(window, "online", () => this.#wake(true));
      on(window, "focus", () => this.#wake(false));
      on(window, "pageshow", (event) => this.#wake((event as PageTransitionEvent).persisted));
    }
    if (typeof document !== "undefined") {
      on(document, "resume", () => this.#wake(true));
      on(document, "visibilitychange", () => {
        if (document.visibilityState === "visible") this.#wake(false);
      });
    }
    this.#tabs = new Tabs(`${this.#base()}${this.#path()} ${this.#options.tenantId ?? ""}`, (revision, doubtful) => {
      // Where a WebSocket is open, it tells.
      if (doubtful || (!this.#socket?.isOpen && revision > this.#revision())) void this.#askAnew();
    });
    let lastTick = Date.now();
    const ticks = setInterval(() => {
      const passed = Date.now() - lastTick;
      lastTick = Date.now();
      this.#tick(passed);
    }, TICK_MS);
    this.#cleanUp.push(() => clearInterval(ticks));
  }

  #stop(): void {
    for (const cleanUp of this.#cleanUp.splice(0)) cleanUp();
    clearTimeout(this.#turn);
    clearTimeout(this.#settling);
    this.#socket?.close();
    this.#socket = null;
    this.#toldBySocket = undefined;
    this.#tabs?.close();
    this.#tabs = null;
    this.#setConnection("idle");
  }

  get #isRunning(): boolean {
    return this.#tabs !== null;
  }

  /** Somebody is here again. `certainly`: after a gap in which anything may have happened. */
  #wake(certainly: boolean): void {
    this.#reckon();
    this.#socket?.wake();
    const age = Date.now() - (this.#told?.at ?? 0);
    if (certainly || age > FRESH_FOR_MS) void this.#ask();
  }

  #tick(passedMs: number): void {
    this.#reckon();
    if (passedMs > ASLEEP_AFTER_MS) {
      // Nobody knows what became of the connection while the machine slept.
      void this.#socket?.connect();
      void this.#ask();
      return;
    }
    const isHidden = typeof document !== "undefined" && document.visibilityState === "hidden";
    const age = Date.now() - (this.#told?.at ?? 0);
    if (!isHidden && this.#socket?.isOpen && age > REVALIDATE_AFTER_MS) void this.#ask();
  }

  // The WebSocket.

  #webSocket(): typeof WebSocket | undefined {
    return this.#options.WebSocket ?? globalThis.WebSocket;
  }

  #openSocket(): void {
    const socket = new ReconnectingSocket(
      async () => {
        const token = await this.#token();
        return {
          url: this.#webSocketUrl(),
          protocols: token ? ["dotmac-license", token] : [],
        };
      },
      () => this.#webSocket() as typeof WebSocket,
      {
        opened: (again) => {
          this.#toldBySocket = undefined;
          this.#setConnection("live");
          if (again) void this.#ask();
        },
        lost: (wasOpen) => {
          this.#setConnection("reconnecting");
          // Where WebSockets don't get through, this is how changes are seen.
          if (!wasOpen) void this.#ask();
        },
        message: (data) => {
          const message = readMessage(data);
          if (message) this.#hearMessage(message);
        },
      },
    );
    this.#socket = socket;
    this.#setConnection("connecting");
    void socket.connect();
  }

  #webSocketUrl(): string {
    const base = this.#base() || globalThis.location?.href;
    const url = new URL(this.#options.webSocketUrl ?? "/ws/license", base);
    url.protocol = url.protocol.replace("http", "ws");
    return url.href;
  }

  #poll(): void {
    this.#setConnection("polling");
    const polls = setInterval(() => {
      if (typeof document === "undefined" || document.visibilityState !== "hidden") void this.#ask();
    }, POLL_EVERY_MS);
    this.#cleanUp.push(() => clearInterval(polls));
  }

  #hearMessage(message: WebSocketMessage): void {
    if (message.type === "usage_threshold") {
      const known = this.#told;
      if (!known?.license) return;
      this.#accept(withUsage(known.license, message));
      if (message.resetsAt !== null) this.#setReset(Date.parse(message.resetsAt));
      return;
    }
    const { license } = message;
    // A replica that has told what is known, or something later, tells nothing older.
    const knew = this.#toldBySocket;
    const known = this.#told?.license?.revision ?? null;
    const isAhead = knew !== undefined && (known === null || (knew !== null && knew >= known));
    this.#toldBySocket = license?.revision ?? null;
    if (isAhead) this.#accept(license);
    else this.#hear(license, Date.now());
    if (license) this.#tabs?.tell(license.revision, false);
  }

  // Asking.

  /** Ask for the licence, or wait for the answer that is under way. */
  #ask(): Promise<void> {
    this.#asking ??= this.#fetchLicense().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  /** Ask for it by a request that has not begun yet. */
  #askAnew(): Promise<void> {
    if (this.#asking === null) return this.#ask();
    this.#askingNext ??= this.#asking.then(() => {
      this.#askingNext = null;
      return this.#ask();
    });
    return this.#askingNext;
  }

  async #fetchLicense(): Promise<void> {
    const askedAt = Date.now();
    const tagged = this.#tagged;
    let response: Response;
    let text: string;
    try {
      response = await this.#request("", tagged ? { headers: { "If-None-Match": tagged.tag } } : {});
      text = await response.text();
    } catch (cause) {
      this.#failed(new LicenseError("The licence could not be asked for.", null, null, cause));
      return;
    }
    this.#clock.heard(response.headers.get("Date"), askedAt, Date.now());
    if (response.status === 304 && tagged) {
      this.#hear(tagged.license, askedAt);
      return;
    }
    const body = parse(text);
    const license = response.ok ? readLicense(body) : hasNoLicense(body) ? null : undefined;
    if (license === undefined) {
      this.#failed(refused(response, body));
      return;
    }
    const tag = response.headers.get("ETag");
    this.#tagged = license && tag !== null ? { tag, license } : null;
    this.#hear(license, askedAt);
  }

  /** One request, with an answer in time or none. */
  async #request(below: string, init: RequestInit): Promise<Response> {
    const headers = await this.#headers();
    this.#lastHeaders = new Headers(headers);
    for (const [name, value] of new Headers(init.headers)) headers.set(name, value);
    const aborter = new AbortController();
    const timer = setTimeout(() => aborter.abort(), ANSWER_WITHIN_MS);
    try {
      return await this.#send(below, {
        ...init,
        headers,
        signal: aborter.signal,
      });
    } finally {
      clearTimeout(timer);
    }
  }

  #send(below: string, init: RequestInit): Promise<Response> {
    const fetch = this.#options.fetch ?? globalThis.fetch;
    const credentials = this.#options.credentials ?? "same-origin";
    return fetch(`${this.#base()}${this.#path()}${below}`, {
      cache: "no-store",
      credentials,
      ...init,
    });
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

  #base(): string {
    return (this.#options.baseUrl ?? "").replace(/\/+$/, "");
  }

  #path(): string {
    return this.#options.licensePath ?? "/license";
  }

  // What is known.

  #revision(): number {
    return this.#told?.license?.revision ?? 0;
  }

  /**
   * It was told, by an answer to what was asked then or by a connection. If that is older than what is known, it is asked
   * for again, once all replicas must have heard of the change.
   */
  #hear(license: License | null, askedAt: number): void {
    if (this.#told !== null && !supersedes(license, this.#told, askedAt)) {
      this.#settle(() => void this.#askAnew());
      return;
    }
    this.#accept(license);
    const socket = this.#socket;
    if (socket?.isOpen && this.#isUnknownToSocket()) {
      // It should have been told there. If it still is not when all have heard, the connection leads nowhere.
      this.#settle(() => {
        if (this.#isUnknownToSocket()) void socket.connect();
      });
    }
  }

  #isUnknownToSocket(): boolean {
    const revision = this.#told?.license?.revision;
    return revision !== undefined && this.#toldBySocket !== undefined && (this.#toldBySocket ?? 0) < revision;
  }

  #settle(then: () => void): void {
    clearTimeout(this.#settling);
    if (this.#isRunning) this.#settling = setTimeout(then, SETTLING_MS);
  }

  #accept(license: License | null): void {
    this.#told = told(license, Date.now(), this.#clock);
    this.#show(this.#told, null);
    this.#setTurn();
  }

  #show(known: Told, error: LicenseError | null): void {
    const before = this.#state;
    const features = featuresAt(known, this.#clock.now());
    const after: LicenseState = {
      ...before,
      status: "ready",
      license: same(known.license, before.license) ? before.license : known.license,
      features: sameSet(features, before.features) ? before.features : features,
      error,
    };
    const { denial } = before;
    this.#set({
      ...after,
      denial: denial && stillDenied(denial, before, after) ? denial : null,
    });
  }

  #failed(error: LicenseError): void {
    const { error: known } = this.#state;
    const isKnown = known?.status === error.status && known.reason === error.reason && known.message === error.message;
    if (!isKnown) this.#set({ error });
  }

  /** Look at the clock: what is known may hold no longer. */
  #reckon(): void {
    if (this.#told !== null && !sameSet(featuresAt(this.#told, this.#clock.now()), this.#state.features)) {
      this.#show(this.#told, this.#state.error);
    }
  }

  #setReset(at: number): void {
    this.#resetsAt = at;
    this.#setTurn();
  }

  /** Be woken when the clock changes what holds. */
  #setTurn(): void {
    clearTimeout(this.#turn);
    const now = this.#clock.now();
    if (this.#resetsAt !== null && this.#resetsAt <= now) this.#resetsAt = null;
    const turns = [this.#told && nextTurn(this.#told, now), this.#resetsAt].filter((turn) => turn !== null);
    if (!this.#isRunning || turns.length === 0) return;
    const turn = Math.min(...turns);
    this.#turn = setTimeout(
      () => {
        const isDue = turn <= this.#clock.now();
        this.#reckon();
        this.#setTurn();
        if (isDue) void this.#askAnew();
      },
      Math.min(Math.ceil(turn - now), LONGEST_TIMER_MS),
    );
  }

  #setConnection(connection: Connection): void {
    if (connection !== this.#state.connection) this.#set({ connection });
  }

  #set(change: Partial<LicenseState>): void {
    const before = this.#state;
    const after = { ...before, ...change };
    const names = Object.keys(after) as (keyof LicenseState)[];
    if (names.every((name) => after[name] === before[name])) return;
    this.#state = after;
    for (const listener of [...this.#listeners]) listener();
  }
}

/** What an answer that is no licence says. */
function refused(response: Response, body: unknown): LicenseError {
  const members = isObject(body) ? body : {};
  const reason = typeof members.reason === "string" ? members.reason : null;
  const message = typeof members.message === "string" ? members.message : `An answer of ${response.status} came.`;
  return new LicenseError(message, response.status, reason);
}

/** Whatever the status: `deny.status` may set another. */
function hasNoLicense(body: unknown): boolean {
  return isObject(body) && body.reason === "no_license";
}

function idempotencyKey(): string {
  // Where a page did not come by TLS, browsers have no `randomUUID`.
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sameSet(one: ReadonlySet<string>, other: ReadonlySet<string>): boolean {
  return one.size === other.size && [...one].every((name) => other.has(name));
}

/** Whether two documents say the same. Both were read by one function, so their members are in one order. */
function same<T extends License | Offers>(one: T | null, other: T | null): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}
