/**
 * The client among two replicas that are up to a second apart, while licences change, end and are deleted, and whatever can
 * fail does: simulated, each run drawn from its number.
 */

import { afterEach, expect, it, vi } from "vitest";
import { LicenseClient } from "../src/client.js";
import { type License, PaymentRequiredError } from "../src/index.js";
import { FakeSocket, json, REFUSAL, refusal, STARTER } from "./world.js";

const RUNS = Number(process.env.FLEET_RUNS ?? 40);
const SECONDS = 120;
const STEP_MS = 100;

/** What a run may meet, beside licences that change. */
interface Weather {
  readonly deletes?: boolean;
  readonly ends?: boolean;
  readonly faults?: boolean;
  readonly sleeps?: boolean;
}

type Replica = 0 | 1;

/** What was written, and when which replica has heard of it. */
interface Version {
  readonly license: License | null;
  readonly heard: readonly [number, number];
}

/** Numbers from 0 to 1, the same for one seed (mulberry32). */
function dice(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const names = (license: License | null) => Object.keys(license?.features ?? {}).join();

class Fleet {
  readonly versions: Version[] = [];
  readonly sockets: { socket: Line; replica: Replica; told: string | null; isDead: boolean }[] = [];
  requests = 0;
  isDown = false;
  #written = 0;

  constructor(
    readonly random: () => number,
    readonly weather: Weather,
    /** How far the visitor's clock is ahead of the proxy's. */
    readonly skew: number,
  ) {
    this.write(this.#next());
  }

  /** By the proxy's clock. */
  now = () => Date.now() - this.skew;

  chance(share: number): boolean {
    return this.random() < share;
  }

  pick(): Replica {
    return this.chance(0.5) ? 0 : 1;
  }

  /** Some change of the licence; one of the replicas may have made it itself. */
  change(by?: Replica): void {
    this.write(this.weather.deletes && this.chance(0.3) ? null : this.#next(), by);
  }

  write(license: License | null, by?: Replica): void {
    const before = this.versions.at(-1);
    const heard = ([0, 1] as const).map((replica) => {
      const lag = replica === by || !before ? 0 : this.random() * 1000;
      return Math.max(this.now() + lag, before?.heard[replica] ?? 0);
    });
    this.versions.push({ license, heard: heard as [number, number] });
  }

  /** What holds, or what a replica takes for it. */
  view(replica?: Replica): License | null {
    const seen = this.versions.filter(({ heard }) => replica === undefined || heard[replica] <= this.now());
    const license = seen.at(-1)?.license ?? null;
    const hasEnded = license?.validUntil && Date.parse(license.validUntil) <= this.now();
    return hasEnded ? { ...license, features: {} } : license;
  }

  fetch = async (input: unknown, init: RequestInit): Promise<Response> => {
    this.requests += 1;
    const replica = this.pick();
    await pause(5 + this.random() * 150);
    if (this.isDown || (this.weather.faults && this.chance(0.1))) throw new TypeError("Failed to fetch");
    if (this.weather.faults && this.chance(0.05)) {
      return new Promise((_, reject) => init.signal?.addEventListener("abort", () => reject(new Error("aborted"))));
    }
    if (this.weather.faults && this.chance(0.05)) return json(503, { ...REFUSAL, reason: "store_unavailable" });
    if (String(input).endsWith("/upgrade")) this.write(this.#next(), replica);
    const license = this.view(replica);
    const headers = { Date: new Date(this.now()).toUTCString(), ETag: `"${license?.revision}-${names(license)}"` };
    // What is under way may be overtaken.
    await pause(this.weather.faults && this.chance(0.1) ? 1000 : this.random() * 100);
    if (license === null) return refusal({ reason: "no_license", feature: null });
    const isKnown = new Headers(init.headers).get("If-None-Match") === headers.ETag;
    return isKnown ? json(304, null, headers) : json(200, license, headers);
  };

  connect(socket: Line): void {
    this.requests += 1;
    const replica = this.pick();
    setTimeout(
      () => {
        if (socket.closed) return;
        if (this.isDown || (this.weather.faults && this.chance(0.2))) socket.lose();
        else if (!this.weather.faults || this.chance(0.95)) {
          socket.open();
          this.sockets.push({ socket, replica, told: null, isDead: false });
        }
      },
      5 + this.random() * 100,
    );
  }

  /** Each connection is told what its replica has heard. */
  tell(): void {
    for (const line of this.sockets) {
      const license = this.view(line.replica);
      const text = JSON.stringify(license);
      if (!line.socket.isOpen || line.isDead || line.told === text) continue;
      line.socket.say({ type: line.told === null ? "license" : "license_updated", license });
      line.told = text;
    }
  }

  cut(): void {
    for (const { socket } of this.sockets) if (socket.isOpen) socket.lose();
  }

  /** The other ends are gone, without a word. */
  deaden(): void {
    for (const line of this.sockets) line.isDead = true;
  }

  get isHeard(): boolean {
    return this.sockets.some(({ socket, isDead }) => socket.isOpen && !isDead);
  }

  #next(): License {
    this.#written += 1;
    const lasts = this.weather.ends && this.chance(0.4) ? 1000 + this.random() * 15_000 : null;
    const validUntil = lasts === null ? null : new Date(this.now() + lasts).toISOString();
    return { ...STARTER, features: { [`v${this.#written}`]: true }, validUntil, revision: 100 + this.#written };
  }
}

class Line extends FakeSocket {}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** What went wrong in a run: nothing. */
async function run(seed: number, weather: Weather): Promise<string[]> {
  const random = dice(seed);
  vi.useFakeTimers({ now: Date.parse("2026-12-01T12:00:00Z") + Math.floor(random() * 1000) });
  vi.spyOn(Math, "random").mockImplementation(random);
  const fleet = new Fleet(random, weather, Math.floor((random() - 0.5) * 7_200_000));
  class Socket extends Line {
    constructor(url: string, protocols: string[]) {
      super(url, protocols);
      fleet.connect(this);
    }
  }
  const client = new LicenseClient({
    baseUrl: "https://api.test",
    fetch: fleet.fetch as typeof fetch,
    WebSocket: Socket as unknown as typeof WebSocket,
  });
  const problems: string[] = [];
  const problem = (what: string) => problems.push(`run ${seed}, ${Date.now() - begun} ms: ${what}`);
  const shown = () => [...client.getState().features].join();
  const begun = Date.now();
  const been = new Set<string>();
  let last = "";
  client.subscribe(() => {
    const now = shown();
    if (now === last) return;
    // Nothing comes back: each version has a name of its own. After a sleep nobody can tell what was when.
    if (now !== "" && been.has(now) && !weather.sleeps) problem(`${now} is back, after ${last || "nothing"}`);
    been.add(now);
    last = now;
  });
  const end = client.start();
  let [before, calmSince] = ["", Date.now()];
  let [counted, countedAt] = [0, Date.now()];
  for (let ms = 0; ms < SECONDS * 1000; ms += STEP_MS) {
    fleet.tell();
    await vi.advanceTimersByTimeAsync(STEP_MS);
    const draw = random();
    if (draw < 0.01) fleet.change();
    else if (draw < 0.013) client.upgrade("another").catch(() => {});
    else if (draw < 0.02) void client.refresh();
    else if (draw < 0.022) client.denied(new PaymentRequiredError(402, REFUSAL));
    else if (draw < 0.03 && weather.faults) fleet.cut();
    else if (draw < 0.031 && weather.faults) fleet.deaden();
    else if (draw < 0.033 && weather.faults) fleet.isDown = !fleet.isDown;
    else if (draw < 0.036 && weather.sleeps) {
      vi.setSystemTime(Date.now() + 300_000);
      fleet.deaden();
    }
    const holds = names(fleet.view());
    const isHeard = client.getState().connection === "live" && fleet.isHeard;
    const truth = `${holds} of ${fleet.versions.length}`;
    if (truth !== before || !isHeard) [before, calmSince] = [truth, Date.now()];
    // Up to a second each for the replica and for the clock, two for replicas to agree; whatever fails meanwhile asks again.
    if (Date.now() - calmSince > 8000 && shown() !== holds) problem(`${shown() || "nothing"} is shown, ${holds} holds`);
    if (Date.now() - countedAt >= 60_000) {
      if (fleet.requests - counted > 80) problem(`${fleet.requests - counted} requests in a minute`);
      [counted, countedAt] = [fleet.requests, Date.now()];
    }
  }
  end();
  await vi.advanceTimersByTimeAsync(25_000);
  if (vi.getTimerCount() > 0) problem(`${vi.getTimerCount()} timers are left`);
  return problems;
}

afterEach(() => {
  vi.useRealTimers();
});

it.each<[string, Weather]>([
  ["changes alone", {}],
  ["deletions", { deletes: true }],
  ["ends", { ends: true }],
  ["faults", { faults: true }],
  ["sleeps", { sleeps: true, faults: true }],
  ["everything", { deletes: true, ends: true, faults: true }],
])("what is shown is what holds, and nothing comes back: %s", { timeout: 120_000 }, async (_, weather) => {
  const problems: string[] = [];
  for (let seed = 1; seed <= RUNS; seed += 1) problems.push(...(await run(seed, weather)));
  expect(problems).toEqual([]);
});
