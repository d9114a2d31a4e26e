/**
 * Keeps what is known of one tenant's licence up to date: asks for it, listens for changes, and watches the clock. Knows
 * nothing of React, and touches nothing of a browser before `start`.
 */

import { type Answer, LicenseApi, type LicenseOptions, refused } from "./api.js";
import { backoff } from "./backoff.js";
import { ServerClock } from "./clock.js";
import { LicenseError, PaymentRequiredError } from "./errors.js";
import { DENIED_EVENT, REFRESH_EVENT } from "./events.js";
import { isObject, readLicense, readMessage, readOffers } from "./read.js";
import { ReconnectingSocket } from "./socket.js";
import {
  featuresNow,
  hasWanted,
  initialState,
  isBehind,
  isDisputed,
  isSettled,
  type Known,
  type LicenseState,
  nextTurn,
  SETTLING_MS,
  standingNow,
  stillDenied,
  withUsage,
} from "./state.js";
import { Tabs } from "./tabs.js";
import type { License, Offers, ThresholdMessage } from "./types.js";

/** What became of an upgrade. */
export type UpgradeResult =
  /** The plan is bought, and holds from now on. */
  | { readonly status: "applied"; readonly license: License }
  /** It is written down that it is wanted; billing applies it. */
  | { readonly status: "requested" };

/** How often the licence is asked for where there is no WebSocket at all. */
const POLL_EVERY_MS = 30_000;

/** After how long without asking it is asked for although a WebSocket is open. */
const REVALIDATE_AFTER_MS = 5 * 60_000;

/** How old what is known may be when somebody comes back to the tab. */
const FRESH_FOR_MS = 10_000;

/** How soon it is asked for again, whoever has reason to. */
const ASK_EVERY_MS = 1000;

/** How long an open WebSocket may take to tell what others have told, and how long to tell anything. */
const TELLS_WITHIN_MS = SETTLING_MS;
const BEGINS_WITHIN_MS = 10_000;

/** How often the tab looks at its clock, and after what leap of it it must have been asleep. Hidden tabs look once a minute. */
const TICK_MS = 10_000;
const ASLEEP_AFTER_MS = 130_000;

/** A timer can't be set for longer. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** How long what is for sale is not asked for again. */
const OFFERS_FRESH_FOR_MS = 5 * 60_000;

type Timer = "turn" | "recheck" | "doubt" | "soon" | "retry" | "offers";

export class LicenseClient {
  /** The state before anything was heard: what a server renders, and a browser while it takes that over. */
  readonly initial: LicenseState;
  readonly #api: LicenseApi;
  readonly #clock = new ServerClock();
  readonly #listeners = new Set<() => void>();
  readonly #timers = new Map<Timer, ReturnType<typeof setTimeout>>();
  #state: LicenseState;
  #known: Known | null = null;
  /** The document that was asked for last, by the tag it came with. */
  #tagged: { readonly tag: string; readonly license: License } | null = null;
  #isRunning = false;
  #cleanUp: (() => void)[] = [];
  #socket: ReconnectingSocket | null = null;
  /** Whether the WebSocket that is or was open has told what is known, so that whatever it tells next is later. */
  #socketKnows = false;
  #tabs: Tabs | null = null;
  #asking: Promise<void> | null = null;
  /** Settled by the request after the one that is under way. */
  #askingNext: Promise<void> | null = null;
  /** Gives up the request that is under way. */
  #leave = new AbortController();
  #askedAt = Number.NEGATIVE_INFINITY;
  /** How many answers in a row were none. */
  #failed = 0;
  #deniedAt = 0;
  /** When limits begin to be counted anew that are known to be used up, by the proxy's clock. */
  readonly #resets = new Set<number>();
  /** When the clock changes something, by that of the proxy. */
  #turnsAt = Infinity;
  #offersAskedAt = Number.NEGATIVE_INFINITY;

  constructor(options: LicenseOptions) {
    const { initialLicense: given } = options;
    const license = given ? readLicense(given) : given;
    this.#api = new LicenseApi(options);
    this.initial = this.#state = initialState(license);
    // Told nobody knows when, and so before anything else.
    if (license !== undefined)
      this.#known = { license, revision: license?.revision ?? 0, at: Number.NEGATIVE_INFINITY };
  }

  /** Other functions, tokens and headers from now on. What identifies API and tenant stays. */
  configure(options: LicenseOptions): void {
    this.#api.configure(options);
  }

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  getState = (): LicenseState => this.#state;

  /** Begin; what is returned ends it. May be begun again. */
  start(): () => void {
    this.#stop();
    this.#isRunning = true;
    this.#leave = new AbortController();
    this.#listen();
    this.#reckon();
    if (this.#api.webSocket === undefined) this.#poll();
    else this.#openSocket();
    void this.#ask();
    return () => this.#stop();
  }

  /** Ask for the licence now. Settles when there is an answer to a request that began after this call, whatever it is. */
  refresh = (): Promise<void> => {
    this.#socket?.wake();
    return this.#askAnew();
  };

  /** Buy another plan. Rejects with a `LicenseError` if it is refused. */
  upgrade = async (plan: string): Promise<UpgradeResult> => {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey() };
    const request = { method: "POST", body: JSON.stringify({ new_plan: plan }), headers };
    let answer = await this.#api.ask("/upgrade", request).catch(() => null);
    if (answer === null || answer.status === 503) {
      // It may have been made or not: the same key tells, and buys nothing twice.
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
      answer = await this.#api.ask("/upgrade", request);
    }
    if (answer.status === 202) return { status: "requested" };
    const license = answer.status === 200 ? readLicense(answer.body) : undefined;
    if (license === undefined) throw refused(answer);
    this.#hear(license, answer.askedAt);
    this.#tellTabs(license);
    return { status: "applied", license };
  };

  /** Say that a person follows the way to an upgrade, though the page be left at the same moment. Never fails. */
  clicked = (feature: string): void => this.#api.beacon("/upgrade-click", JSON.stringify({ feature }));

  /** Ask what is for sale, unless that is known. Never fails: `offers` stays as it is. */
  loadOffers = async (): Promise<void> => {
    const now = Date.now();
    if (now - this.#offersAskedAt < OFFERS_FRESH_FOR_MS) return;
    this.#offersAskedAt = now;
    const answer = await this.#api.ask("/plans").catch(() => null);
    const offers = answer?.status === 200 ? readOffers(answer.body) : undefined;
    if (offers && !same(offers, this.#state.offers)) this.#set({ offers });
    // 404: a proxy that does not tell. All else may go better next time.
    if (answer?.status === 200 || answer?.status === 404) return;
    this.#offersAskedAt = Number.NEGATIVE_INFINITY;
    this.#after("offers", POLL_EVERY_MS, () => void this.loadOffers());
  };

  /** A call was refused: what the page shows is out of date, or its user has met a limit. */
  denied = (denial: PaymentRequiredError): void => {
    this.#deniedAt = Date.now();
    this.#set({ denial });
    if (denial.resetsAt) this.#expectReset(denial.resetsAt.getTime());
    this.#tabs?.tell(this.#revision(), true);
    this.#askSoon();
    // The first answer may come from a replica that has not heard yet.
    this.#recheck();
  };

  /** The denial was seen. */
  dismiss = (): void => this.#set({ denial: null });

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
      on(window, "online", () => this.#comeBack(true));
      on(window, "focus", () => this.#lookAgain());
      // A page that may be shown again as it was must hold no connection meanwhile.
      on(window, "pagehide", (event) => {
        if ((event as PageTransitionEvent).persisted) this.#socket?.close();
      });
      on(window, "pageshow", (event) => {
        if ((event as PageTransitionEvent).persisted) this.#comeBack(true);
      });
    }
    if (typeof document !== "undefined") {
      on(document, "resume", () => this.#comeBack(false));
      on(document, "visibilitychange", () => {
        if (document.visibilityState === "visible") this.#lookAgain();
      });
    }
    this.#tabs = new Tabs(this.#api.topic, (revision, doubtful) => {
      // Where a WebSocket is open, it tells.
      if (doubtful || (!this.#socket?.isOpen && revision > this.#revision())) this.#askSoon();
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
    this.#isRunning = false;
    for (const cleanUp of this.#cleanUp.splice(0)) cleanUp();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#leave.abort();
    this.#socket?.close();
    this.#socket = null;
    this.#tabs?.close();
    this.#tabs = null;
    this.#set({ connection: "idle" });
  }

  /** Somebody looks at the tab again. */
  #lookAgain(): void {
    this.#reckon();
    this.#socket?.wake();
    if (Date.now() - this.#askedAt > FRESH_FOR_MS) void this.#ask();
  }

  /**
   * The page, the machine or the network was away, and anything may have happened meanwhile. `anew`: to the connection too,
   * which nobody need have noticed.
   */
  #comeBack(anew: boolean): void {
    this.#reckon();
    if (anew && this.#socket) {
      this.#set({ connection: "reconnecting" });
      void this.#socket.connect();
    } else this.#socket?.wake();
    // What was asked before may never be answered.
    this.#leave.abort();
    this.#leave = new AbortController();
    void this.#ask();
  }

  #tick(passedMs: number): void {
    if (passedMs < 0 || passedMs > ASLEEP_AFTER_MS) {
      // The machine slept; or its clock was set, and nothing of what was told can be dated.
      if (passedMs < 0 && this.#known) this.#known = { ...this.#known, at: Number.NEGATIVE_INFINITY };
      this.#askedAt = Number.NEGATIVE_INFINITY;
      this.#comeBack(true);
      return;
    }
    this.#reckon();
    if (!isHidden() && Date.now() - this.#askedAt > REVALIDATE_AFTER_MS) void this.#ask();
  }

  // The WebSocket.

  #openSocket(): void {
    this.#socket = new ReconnectingSocket(
      () => this.#api.dial(),
      () => this.#api.webSocket as typeof WebSocket,
      {
        opened: (again) => {
          this.#socketKnows = false;
          this.#set({ connection: "live" });
          this.#doubtSocket(BEGINS_WITHIN_MS);
          if (again) void this.#askAnew();
        },
        lost: (wasOpen) => {
          this.#set({ connection: "reconnecting" });
          // Where WebSockets don't get through, this is how changes are seen.
          if (!wasOpen) void this.#ask();
        },
        message: (data) => {
          const message = readMessage(data);
          if (message?.type === "usage_threshold") this.#hearOfUsage(message);
          else if (message) this.#hearFromSocket(message.license);
        },
      },
    );
    this.#set({ connection: "connecting" });
    void this.#socket.connect();
  }

  #poll(): void {
    this.#set({ connection: "polling" });
    const polls = setInterval(() => {
      if (!isHidden()) void this.#ask();
    }, POLL_EVERY_MS);
    this.#cleanUp.push(() => clearInterval(polls));
  }

  #hearFromSocket(license: License | null): void {
    const now = Date.now();
    const known = this.#known;
    const isDoubtful = !this.#socketKnows && known !== null && isBehind(license, known, now);
    if (isDoubtful && !isSettled(known, now)) {
      // Another replica is ahead of this one, which will hear of it, and tell; or it is the other way round.
      this.#doubtSocket(TELLS_WITHIN_MS);
      return;
    }
    this.#socketKnows = true;
    this.#clear("doubt");
    this.#accept(license, now);
    this.#tellTabs(license);
    if (isDoubtful) this.#recheck();
  }

  #hearOfUsage(message: ThresholdMessage): void {
    if (!this.#known?.license) return;
    this.#known = { ...this.#known, license: withUsage(this.#known.license, message) };
    this.#show(this.#known, this.#state.error);
    if (message.resetsAt !== null) this.#expectReset(Date.parse(message.resetsAt));
  }

  /** It should tell what others have told. If it does not in time, it leads nowhere, or to a replica that hears nothing. */
  #doubtSocket(withinMs: number): void {
    this.#after("doubt", withinMs, () => {
      if (this.#socket?.isOpen && !this.#socketKnows) this.#socket.retry();
    });
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
      return this.#isRunning ? this.#ask() : undefined;
    });
    return this.#askingNext;
  }

  /** Ask anew, but not again and again, however often there is reason to. */
  #askSoon(): void {
    const pause = Math.min(this.#askedAt + ASK_EVERY_MS - Date.now(), ASK_EVERY_MS);
    if (pause <= 0) void this.#askAnew();
    else if (!this.#timers.has("soon")) this.#after("soon", pause, () => void this.#askAnew());
  }

  /** Ask once more when all replicas must have heard of the last change. */
  #recheck(): void {
    this.#after("recheck", SETTLING_MS, () => void this.#askAnew());
  }

  async #fetchLicense(): Promise<void> {
    const tagged = this.#tagged;
    const { signal } = this.#leave;
    this.#askedAt = Date.now();
    try {
      const answer = await this.#api.ask("", tagged ? { headers: { "If-None-Match": tagged.tag } } : {}, signal);
      this.#clock.heard(answer.headers.get("Date"), answer.askedAt, answer.answeredAt);
      const license = answer.status === 304 && tagged ? tagged.license : licenseOf(answer);
      if (license === undefined) throw refused(answer);
      const tag = answer.headers.get("ETag");
      this.#tagged = license && tag !== null ? { tag, license } : null;
      this.#failed = 0;
      this.#clear("retry");
      this.#hear(license, answer.askedAt);
      this.#remedy(answer.askedAt);
    } catch (error) {
      // Given up: whoever waits, waits for the next one.
      if (signal.aborted) return this.#isRunning ? this.#fetchLicense() : undefined;
      this.#fail(error instanceof LicenseError ? error : new LicenseError(String(error), null, null, error));
      this.#after("retry", backoff(this.#failed), () => void this.#ask());
      this.#failed += 1;
    }
  }

  // What is known.

  #revision(): number {
    return this.#known?.revision ?? 0;
  }

  /** It was told, by an answer to what was asked then. */
  #hear(license: License | null, askedAt: number): void {
    const known = this.#known;
    if (known && isBehind(license, known, askedAt)) {
      if (same(license, known.license)) return;
      if (!isSettled(known, askedAt)) {
        this.#recheck();
        return;
      }
      if (this.#socket?.isOpen && this.#socketKnows) {
        // One of the two does not hear of changes. A new connection tells which.
        this.#socket.retry();
        return;
      }
    }
    const isNews = known?.license?.revision !== license?.revision;
    this.#accept(license, askedAt);
    if (isNews && this.#socketKnows) {
      this.#socketKnows = false;
      this.#doubtSocket(TELLS_WITHIN_MS);
    }
  }

  /** `at`: it was so then, or later. */
  #accept(license: License | null, at: number): void {
    this.#known = { license, revision: license?.revision ?? this.#revision(), at };
    this.#show(this.#known, null);
    this.#setTurn();
    if (isDisputed(this.#known, this.#clock)) this.#recheck();
  }

  #show(known: Known, error: LicenseError | null): void {
    const before = this.#state;
    const features = featuresNow(known, this.#clock);
    const after: LicenseState = {
      ...before,
      status: "ready",
      license: same(known.license, before.license) ? before.license : known.license,
      features: sameSet(features, before.features) ? before.features : features,
      standing: standingNow(known, this.#clock),
      error,
    };
    const { denial } = before;
    this.#set({ ...after, denial: denial && stillDenied(denial, before, after) ? denial : null });
  }

  /** What was asked for long enough after a denial, and has the feature, has remedied it: a replica had not heard yet. */
  #remedy(askedAt: number): void {
    const { denial } = this.#state;
    if (denial && hasWanted(denial, this.#state) && askedAt - this.#deniedAt >= SETTLING_MS) this.dismiss();
  }

  #fail(error: LicenseError): void {
    const { error: known } = this.#state;
    const isKnown = known?.status === error.status && known.reason === error.reason && known.message === error.message;
    if (!isKnown) this.#set({ error });
  }

  #tellTabs(license: License | null): void {
    this.#tabs?.tell(this.#revision(), license === null);
  }

  /** Look at the clock: what is known may hold no longer. */
  #reckon(): void {
    const isDue = this.#turnsAt <= this.#clock.now();
    if (this.#known) this.#show(this.#known, this.#state.error);
    this.#setTurn();
    const { denial } = this.#state;
    if (denial?.resetsAt && denial.resetsAt.getTime() <= this.#clock.now()) this.dismiss();
    if (isDue) this.#askSoon();
  }

  #expectReset(at: number): void {
    if (this.#resets.size < 100) this.#resets.add(at);
    this.#setTurn();
  }

  /** Be woken when the clock changes what holds. */
  #setTurn(): void {
    const now = this.#clock.now();
    for (const reset of this.#resets) {
      if (reset <= now) this.#resets.delete(reset);
    }
    this.#turnsAt = Math.min((this.#known && nextTurn(this.#known, this.#clock)) ?? Infinity, ...this.#resets);
    if (this.#turnsAt === Infinity) this.#clear("turn");
    else this.#after("turn", Math.min(Math.ceil(this.#turnsAt - now), LONGEST_TIMER_MS), () => this.#reckon());
  }

  /** Do something later, unless it is set anew, or all ends before. */
  #after(name: Timer, ms: number, then: () => void): void {
    this.#clear(name);
    if (!this.#isRunning) return;
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      then();
    }, ms);
    this.#timers.set(name, timer);
  }

  #clear(name: Timer): void {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
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

/** Whether nobody can see the page. */
function isHidden(): boolean {
  return typeof document !== "undefined" && document.visibilityState === "hidden";
}

/** The licence that an answer has; null: it says that there is none, by whatever status (`deny.status`). */
function licenseOf({ status, body }: Answer): License | null | undefined {
  if (status === 200) return readLicense(body);
  return isObject(body) && body.reason === "no_license" ? null : undefined;
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
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}
