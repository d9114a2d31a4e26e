import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { LicenseClient } from "../src/client.js";
import { LicenseError, type LicenseOptions, PaymentRequiredError, REFRESH_EVENT } from "../src/index.js";
import { json, professional, REFUSAL, refusal, STARTER, World } from "./world.js";

const NOON = Date.parse("2026-12-01T12:00:00Z");

beforeEach(() => {
  vi.useFakeTimers({ now: NOON });
  vi.spyOn(Math, "random").mockReturnValue(1);
});

const ends: (() => void)[] = [];

afterEach(() => {
  for (const end of ends.splice(0)) end();
  vi.useRealTimers();
});

function begin(world: World, options: LicenseOptions = {}): LicenseClient {
  const client = new LicenseClient({ ...world.options, ...options });
  ends.push(client.start());
  return client;
}

/** Lets everything happen that is due within this time. */
const pass = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

const features = (client: LicenseClient) => [...client.getState().features].sort();

/** Everything that passes, from now on. */
function history(client: LicenseClient): string[] {
  const seen = [features(client).join()];
  client.subscribe(() => {
    const now = features(client).join();
    if (now !== seen.at(-1)) seen.push(now);
  });
  return seen;
}

/** A client with a licence, told by both ways. */
async function settled(world = new World(), options: LicenseOptions = {}) {
  const client = begin(world, options);
  await pass();
  world.socket.begin(world.license);
  await pass(3000);
  return { world, client };
}

describe("asking", () => {
  it("says that it is loading until there is an answer, and who asks", async () => {
    const world = new World();
    const client = begin(world, { token: async () => "jwt", headers: { "X-Portal": "1" }, credentials: "include" });
    expect(client.getState()).toMatchObject({ status: "loading", license: null, error: null });
    await pass();
    expect(client.getState()).toMatchObject({ status: "ready", license: STARTER });
    const [asked] = world.asked;
    expect(asked?.path).toBe("/license");
    expect(Object.fromEntries(asked?.headers ?? [])).toEqual({
      accept: "application/json",
      authorization: "Bearer jwt",
      "x-portal": "1",
      "x-tenant-id": "t-1",
    });
    expect(asked?.init).toMatchObject({ credentials: "include", cache: "no-store" });
    expect(world.socket.url).toBe("wss://api.test/ws/license");
    expect(world.socket.protocols).toEqual(["dotmac-license", "jwt"]);
  });

  it("names its tenant by another header, and nobody where it is not told", async () => {
    const world = new World();
    begin(world, { tenantHeader: "X-Org" });
    begin(world, { tenantId: undefined });
    await pass();
    expect(world.asked.map(({ headers }) => [headers.get("X-Org"), headers.get("X-Tenant-ID")])).toEqual([
      ["t-1", null],
      [null, null],
    ]);
    expect(world.socket.protocols).toEqual([]);
  });

  it("asks with the tag of what it has, and keeps that on 304", async () => {
    const { world, client } = await settled();
    const before = client.getState();
    await client.refresh();
    expect(world.asked.at(-1)?.headers.get("If-None-Match")).toBe('"tag-1"');
    expect(client.getState()).toBe(before);
  });

  it("takes a 304 for the document of that tag, whatever was told meanwhile", async () => {
    const world = new World();
    const client = begin(world, { webSocketUrl: null });
    await pass(3000);
    world.answers["/license/upgrade"] = () => json(200, professional());
    await client.upgrade("professional");
    expect(features(client)).toEqual(["crm", "tickets"]);
    // A database that was restored: what was asked for first is right again.
    await pass(3000);
    await client.refresh();
    expect(world.asked.at(-1)?.headers.get("If-None-Match")).toBe('"tag-1"');
    expect(client.getState().license).toEqual(STARTER);
  });

  it("knows that there is no licence, whatever the status says", async () => {
    const world = new World();
    world.license = null;
    const client = begin(world);
    await pass();
    expect(client.getState()).toMatchObject({ status: "ready", license: null, error: null });
    world.answers["/license"] = () => refusal({ reason: "no_license", feature: null }, 403);
    const other = begin(world);
    await pass();
    expect(other.getState()).toMatchObject({ status: "ready", license: null });
  });

  it.each<[string, () => Response | Promise<Response>, Partial<LicenseError>]>([
    ["no connection", () => Promise.reject(new TypeError("Failed to fetch")), { status: null, reason: null }],
    ["no tenant", () => json(401, { ...REFUSAL, reason: "tenant_missing" }), { status: 401, reason: "tenant_missing" }],
    ["no store", () => json(503, { ...REFUSAL, reason: "store_unavailable" }), { status: 503 }],
    ["a page", () => new Response("<!doctype html>", { status: 200 }), { status: 200, reason: null }],
    ["half an answer", () => new Response('{"planTier":', { status: 200 }), { status: 200 }],
  ])("keeps what it knows on %s, and says why", async (_, answer, error) => {
    const { world, client } = await settled();
    world.answers["/license"] = answer;
    await client.refresh();
    expect(client.getState()).toMatchObject({ status: "ready", license: STARTER });
    expect(client.getState().error).toBeInstanceOf(LicenseError);
    expect(client.getState().error).toMatchObject(error);
    const again = client.getState();
    await client.refresh();
    expect(client.getState()).toBe(again);
    world.answers = {};
    await client.refresh();
    expect(client.getState().error).toBeNull();
    const fresh = begin(new World({ fetch: async () => answer() }));
    await pass();
    expect(fresh.getState().status).toBe("loading");
  });

  it("gives up an answer that does not come", async () => {
    const world = new World();
    world.answers["/license"] = ({ init }) =>
      new Promise((_, reject) => {
        init.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
      });
    const client = begin(world);
    await pass(10_000);
    expect(client.getState().error).toMatchObject({ status: null });
  });

  it("is not kept from asking again by an answer, or a token, that never ends", async () => {
    const { world, client } = await settled();
    world.answers["/license"] = () =>
      new Response(new ReadableStream({ start: (body) => body.enqueue(new Uint8Array(1)) }));
    void client.refresh();
    await pass(11_000);
    expect(client.getState().error).toMatchObject({ status: null });
    world.answers = {};
    world.license = professional();
    await pass(30_000);
    expect(features(client)).toEqual(["crm", "tickets"]);
    let isStuck = true;
    const other = new World();
    const late = begin(other, { token: () => (isStuck ? new Promise<string>(() => {}) : "jwt") });
    await pass(11_000);
    isStuck = false;
    await pass(30_000);
    expect(features(late)).toEqual(["tickets"]);
  });

  it("asks again after each failure, later and later", async () => {
    const { world } = await settled();
    world.answers["/license"] = () => json(503, { ...REFUSAL, reason: "store_unavailable" });
    window.dispatchEvent(new CustomEvent(REFRESH_EVENT));
    await pass(60_000);
    const asks = world.asks;
    await pass(600_000);
    expect(world.asks - asks).toBe(20);
  });

  it("asks once more for whoever wants it while an answer is under way, and not once for each", async () => {
    const { world, client } = await settled();
    const before = world.asks;
    const all = [client.refresh(), client.refresh(), client.refresh(), client.refresh()];
    await Promise.all(all);
    expect(world.asks - before).toBe(2);
  });
});

describe("listening", () => {
  it("shows each change as it is told, without asking", async () => {
    const { world, client } = await settled();
    expect(client.getState().connection).toBe("live");
    const asks = world.asks;
    for (let revision = 11; revision < 30; revision += 1) {
      world.socket.tell(revision % 2 ? professional(revision) : { ...STARTER, revision });
      expect(features(client)).toEqual(revision % 2 ? ["crm", "tickets"] : ["tickets"]);
    }
    world.socket.tell(null);
    expect(client.getState()).toMatchObject({ status: "ready", license: null });
    world.socket.tell(professional(31));
    expect(features(client)).toEqual(["crm", "tickets"]);
    expect(world.asks).toBe(asks);
  });

  it("passes over what it does not know", async () => {
    const { world, client } = await settled();
    const before = client.getState();
    world.socket.say({ type: "seats", license: null });
    world.socket.onmessage?.({ data: "nonsense" });
    world.socket.say({ type: "license_updated", license: { ...STARTER, seats: 4 } });
    expect(client.getState()).toBe(before);
  });

  it("is ready by the WebSocket alone where nothing else answers", async () => {
    const world = new World({ fetch: () => Promise.reject(new TypeError()) });
    const client = begin(world);
    await pass();
    world.socket.begin(STARTER);
    expect(client.getState()).toMatchObject({ status: "ready", license: STARTER });
  });

  it("shows what is used when a share of a limit is told", async () => {
    const { world, client } = await settled();
    world.socket.say({
      type: "usage_threshold",
      feature: "tickets",
      percent: 80,
      used: 80,
      limit: 100,
      resetsAt: null,
    });
    expect(client.getState().license?.currentUsage).toEqual({ tickets: 80 });
  });

  it("comes back after a loss, each time later, and asks after the gap", async () => {
    const { world, client } = await settled();
    world.socket.lose();
    expect(client.getState()).toMatchObject({ connection: "reconnecting", license: STARTER });
    const opened = [];
    const begun = Date.now();
    for (let failed = 0; failed < 6; failed += 1) {
      const count = world.sockets.length;
      while (world.sockets.length === count) await pass(100);
      opened.push(Date.now() - begun);
      world.socket.lose();
    }
    expect(opened).toEqual([1000, 3000, 7000, 15_000, 31_000, 61_000]);
    world.license = professional();
    await pass(30_000);
    const asks = world.asks;
    world.socket.open();
    await pass();
    expect(world.asks).toBe(asks + 1);
    expect(features(client)).toEqual(["crm", "tickets"]);
    expect(client.getState().connection).toBe("live");
  });

  it("asks at each attempt where WebSockets don't get through", async () => {
    const world = new World();
    const client = begin(world);
    await pass();
    world.socket.lose();
    world.license = professional();
    await pass(500);
    world.socket.lose();
    await pass();
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("does not hurry back to who closes it again and again", async () => {
    const { world } = await settled();
    const before = world.sockets.length;
    for (let second = 0; second < 120; second += 1) {
      if (!world.socket.closed) world.socket.begin(STARTER);
      world.socket.lose(1008);
      await pass(1000);
    }
    expect(world.sockets.length - before).toBeLessThan(10);
  });

  it("gives whoever asks for it a longer pause", async () => {
    const { world } = await settled();
    await pass(10_000);
    world.socket.lose(1013);
    await pass(7000);
    expect(world.sockets.length).toBe(1);
    await pass(1000);
    expect(world.sockets.length).toBe(2);
  });

  it("gives up a handshake that is not answered", async () => {
    const world = new World();
    begin(world);
    await pass();
    const [first] = world.sockets;
    await pass(10_000 + 1000);
    expect(first?.closed).toBe(true);
    expect(world.sockets.length).toBe(2);
  });

  it("gets itself a new token for each connection", async () => {
    let token = 0;
    const { world } = await settled(new World(), { token: () => `jwt-${++token}` });
    const first = world.socket.protocols[1];
    world.socket.lose(1008);
    await pass(1000);
    expect(world.socket.protocols[1]).not.toBe(first);
  });

  it("says now and then that it is there, so that a dead connection is found", async () => {
    const { world } = await settled();
    await pass(45_000);
    expect(world.socket.sent.length).toBe(1);
  });

  it("is not met every few seconds by a gateway that opens and relays nothing", async () => {
    const world = new World();
    begin(world);
    await pass();
    let opened: unknown;
    for (let second = 0; second < 600; second += 1) {
      if (world.socket !== opened) {
        opened = world.socket;
        world.socket.open();
      }
      await pass(1000);
    }
    expect(world.sockets.length).toBeLessThan(30);
  });

  it("costs one request to begin with, though the WebSocket be the quicker", async () => {
    const world = new World();
    let answer: (response: Response) => void = () => {};
    world.answers["/license"] = () => new Promise((resolve) => (answer = resolve));
    begin(world);
    await pass(10);
    world.socket.begin(STARTER);
    await pass(10);
    answer(json(200, STARTER));
    await pass(5000);
    expect(world.asks).toBe(1);
  });

  it("opens nothing for whoever has ended while a token was waited for", async () => {
    const given: ((token: string) => void)[] = [];
    const world = new World({ token: () => new Promise((resolve) => given.push(resolve)) });
    const end = new LicenseClient(world.options).start();
    await pass();
    end();
    for (const give of given) give("jwt");
    await pass();
    expect(world.sockets.length).toBe(0);
  });

  it("asks nothing in a hidden tab where there is no WebSocket", async () => {
    const world = new World();
    begin(world, { webSocketUrl: null });
    await pass();
    vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
    await pass(20 * 60_000);
    expect(world.asks).toBe(1);
  });

  it("asks every half minute where there is no WebSocket", async () => {
    const world = new World();
    const client = begin(world, { webSocketUrl: null });
    await pass();
    expect(client.getState().connection).toBe("polling");
    world.license = professional();
    await pass(30_000);
    expect(features(client)).toEqual(["crm", "tickets"]);
    expect(world.sockets.length).toBe(0);
  });
});

describe("of two answers", () => {
  it("the later revision stands, whichever comes first", async () => {
    const { world, client } = await settled();
    // Another replica has not heard of the change that was told here.
    world.socket.tell(professional(20));
    await client.refresh();
    expect(features(client)).toEqual(["crm", "tickets"]);
    world.license = professional(20);
    await pass(2000);
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("the earlier stands if a new connection tells it too: a database was restored", async () => {
    const { world, client } = await settled();
    world.socket.tell(professional(20));
    await client.refresh();
    await pass(2000);
    // One of the two hears nothing of changes, and who, the next connection tells.
    expect(features(client)).toEqual(["crm", "tickets"]);
    expect(client.getState().connection).toBe("reconnecting");
    await pass(1000);
    world.socket.begin(STARTER);
    await pass();
    expect(features(client)).toEqual(["tickets"]);
  });

  it("one of a replica that hears nothing does not stand against an open connection", async () => {
    const { world, client } = await settled();
    world.socket.tell(professional(20));
    await pass(3000);
    await client.refresh();
    await pass(1000);
    world.socket.begin(professional(20));
    world.license = professional(20);
    await pass(10_000);
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("a licence that was deleted does not come back by an answer of a replica that has not heard", async () => {
    const { world, client } = await settled();
    const seen = history(client);
    world.socket.tell(null);
    await pass(100);
    await client.refresh();
    world.license = null;
    await pass(10_000);
    expect(seen).toEqual(["tickets", ""]);
  });

  it("a feature that has ended by itself does not come back by an answer that was under way", async () => {
    const { world, client } = await settled();
    world.socket.tell(professional());
    let answer: (response: Response) => void = () => {};
    world.answers["/license"] = () => new Promise((resolve) => (answer = resolve));
    const asked = client.refresh();
    await pass(50);
    world.license = { ...professional(), features: { tickets: true } };
    world.socket.tell(world.license);
    world.answers = {};
    answer(json(200, professional()));
    await asked;
    expect(features(client)).toEqual(["tickets"]);
    await pass(10_000);
    expect(features(client)).toEqual(["tickets"]);
  });

  it("one that a lagging replica tells at first does not undo an upgrade", async () => {
    const { world, client } = await settled();
    world.answers["/license/upgrade"] = () => json(200, professional(20));
    await client.upgrade("professional");
    world.socket.tell({ ...STARTER, revision: 12 });
    expect(features(client)).toEqual(["crm", "tickets"]);
    world.license = professional(20);
    world.socket.tell(professional(20));
    world.socket.tell({ ...STARTER, revision: 21 });
    expect(features(client)).toEqual(["tickets"]);
  });

  it("a WebSocket that does not tell what an answer has told leads nowhere", async () => {
    const { world, client } = await settled();
    const [dead] = world.sockets;
    world.license = professional();
    await client.refresh();
    expect(features(client)).toEqual(["crm", "tickets"]);
    await pass(2000 + 1000);
    expect(dead?.closed).toBe(true);
    expect(world.sockets.length).toBe(2);
  });

  it("an older one that a new connection tells is doubted at once", async () => {
    const world = new World();
    world.license = professional(20);
    const client = begin(world);
    await pass(3000);
    world.socket.begin(STARTER);
    await pass(60_000);
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("and so does one that has opened and tells nothing", async () => {
    const world = new World();
    begin(world);
    await pass();
    world.socket.open();
    await pass(10_000 + 1000);
    expect(world.sockets.length).toBe(2);
  });
});

describe("the clock", () => {
  const ending = (seconds: number): typeof STARTER => ({
    ...STARTER,
    validUntil: new Date(NOON + seconds * 1000).toISOString(),
  });

  it("closes what has ended without a word, and asks", async () => {
    const world = new World();
    world.license = ending(600);
    const { client } = await settled(world);
    world.answers["/license"] = () => Promise.reject(new TypeError());
    await pass(590_000);
    expect(features(client)).toEqual(["tickets"]);
    const asks = world.asks;
    await pass(8000);
    expect(features(client)).toEqual([]);
    expect(client.getState().license).toEqual(world.license);
    expect(world.asks).toBeGreaterThan(asks);
  });

  it("is the proxy's, however wrong that of the machine is", async () => {
    // The machine is an hour ahead.
    const world = new World();
    world.license = ending(600);
    const date = () => new Date(Date.now() - 3_600_000).toUTCString();
    world.answers["/license"] = () => json(200, world.license, { Date: date() });
    const client = begin(world);
    await pass();
    expect(features(client)).toEqual(["tickets"]);
    await pass(3_600_000 + 590_000);
    expect(features(client)).toEqual(["tickets"]);
    world.answers["/license"] = () => json(200, { ...world.license, features: {} }, { Date: date() });
    await pass(11_000);
    expect(features(client)).toEqual([]);
  });

  it("closes once, though the proxy's own is known to the second only, and never before its time", async () => {
    for (const part of [0, 137, 500, 999]) {
      vi.setSystemTime(NOON + part);
      const world = new World();
      const end = NOON + 60_000;
      const told = () => ({
        ...STARTER,
        validUntil: new Date(end).toISOString(),
        features: Date.now() < end ? STARTER.features : {},
      });
      world.answers["/license"] = () => json(200, told(), { Date: new Date(Date.now()).toUTCString() });
      const client = begin(world);
      await pass();
      world.socket.begin(told());
      const seen = history(client);
      await pass(end - Date.now() - 1);
      expect(seen).toEqual(["tickets"]);
      await pass(2000);
      world.socket.tell(told());
      expect(seen).toEqual(["tickets", ""]);
    }
  });

  it("closes what a server had asked for long ago, where nobody answers", async () => {
    const world = new World({ fetch: () => Promise.reject(new TypeError()) });
    const client = begin(world, { initialLicense: ending(-60) });
    await pass();
    expect([features(client), client.getState().standing]).toEqual([[], "ended"]);
  });

  it("is not outwitted by what is told of use after the end", async () => {
    const world = new World({ fetch: () => Promise.reject(new TypeError()) });
    const client = begin(world);
    await pass();
    world.socket.begin(ending(60));
    await pass(61_000);
    const spent = { type: "usage_threshold", feature: "tickets", percent: 80, used: 80, limit: 100, resetsAt: null };
    world.socket.say(spent);
    await pass(1000);
    expect(features(client)).toEqual([]);
  });

  it("opens again what was renewed meanwhile", async () => {
    const world = new World();
    world.license = ending(600);
    const { client } = await settled(world);
    world.license = { ...ending(6000), revision: 12 };
    await pass(600_000);
    expect(features(client)).toEqual(["tickets"]);
  });

  it("asks when a licence begins, and when a limit counts anew", async () => {
    const world = new World();
    world.license = { ...STARTER, features: {}, validFrom: new Date(NOON + 60_000).toISOString() };
    const { client } = await settled(world);
    world.license = { ...STARTER, revision: 12 };
    await pass(60_000);
    expect(features(client)).toEqual(["tickets"]);
    const resetsAt = new Date(Date.now() + 90_000).toISOString();
    world.socket.say({ type: "usage_threshold", feature: "tickets", percent: 100, used: 100, limit: 100, resetsAt });
    world.license = { ...STARTER, revision: 12, currentUsage: { tickets: 0 } };
    await pass(92_000);
    expect(client.getState().license?.currentUsage).toEqual({ tickets: 0 });
  });

  it("may be set for years", async () => {
    const world = new World();
    world.license = ending(60 * 24 * 3600);
    const { client } = await settled(world);
    const asks = world.asks;
    await pass(1000);
    expect([features(client), world.asks]).toEqual([["tickets"], asks]);
  });
});

describe("around the page", () => {
  it("license:refresh has it asked for", async () => {
    const { world, client } = await settled();
    world.license = professional();
    window.dispatchEvent(new CustomEvent(REFRESH_EVENT));
    await pass();
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("after a sleep a new connection to a replica that has not heard yet undoes nothing", async () => {
    const { world, client } = await settled();
    vi.setSystemTime(NOON + 3_600_000);
    world.license = professional(20);
    await pass(7000);
    expect(features(client)).toEqual(["crm", "tickets"]);
    const seen = history(client);
    world.socket.begin(STARTER);
    await pass(500);
    world.socket.tell(professional(20));
    await pass(5000);
    expect(seen).toEqual(["crm,tickets"]);
    expect(world.sockets.length).toBe(2);
  });

  it.each(["online", "focus"])("%s brings a lost connection back at once", async (name) => {
    const { world } = await settled();
    for (let failed = 0; failed < 6; failed += 1) {
      world.socket.lose();
      await pass(16_000);
    }
    world.socket.lose();
    const count = world.sockets.length;
    window.dispatchEvent(new Event(name));
    await pass();
    expect(world.sockets.length).toBe(count + 1);
    // Not twice, however often somebody comes and goes.
    window.dispatchEvent(new Event("focus"));
    await pass();
    expect(world.sockets.length).toBe(count + 1);
  });

  it("who comes back to a tab sees what holds now", async () => {
    const { world, client } = await settled();
    world.license = professional();
    await pass(11_000);
    document.dispatchEvent(new Event("visibilitychange"));
    await pass();
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("a tab that was frozen catches up", async () => {
    const { world, client } = await settled();
    world.license = professional();
    document.dispatchEvent(new Event("resume"));
    await pass();
    expect(features(client)).toEqual(["crm", "tickets"]);
  });

  it("a machine that slept trusts no connection, and no feature that ended meanwhile", async () => {
    const world = new World();
    world.license = { ...STARTER, validUntil: new Date(NOON + 600_000).toISOString() };
    const { client } = await settled(world);
    const [old] = world.sockets;
    world.answers["/license"] = () => new Promise(() => {});
    // No timer ran.
    vi.setSystemTime(NOON + 3_600_000);
    await pass(10_000);
    expect(features(client)).toEqual([]);
    expect(old?.closed).toBe(true);
    expect(world.sockets.length).toBe(2);
  });

  it("a machine whose clock is set back believes what it is told", async () => {
    const { world, client } = await settled();
    vi.setSystemTime(NOON - 3_600_000);
    world.license = null;
    await pass(15_000);
    expect(client.getState().license).toBeNull();
  });

  it("what was asked before the network was away keeps nobody waiting, and is answered all the same", async () => {
    const { world, client } = await settled();
    world.answers["/license"] = () => new Promise(() => {});
    const asked = client.refresh().then(() => features(client));
    await pass(100);
    world.answers = {};
    world.license = professional();
    window.dispatchEvent(new Event("online"));
    await pass();
    expect(await asked).toEqual(["crm", "tickets"]);
  });

  it("what was asked while it was ended does not delay its beginning", async () => {
    const world = new World();
    const client = new LicenseClient(world.options);
    client.start()();
    await pass();
    world.answers["/license"] = () => new Promise(() => {});
    void client.refresh();
    await pass(100);
    world.answers = {};
    ends.push(client.start());
    await pass(100);
    expect(client.getState().status).toBe("ready");
  });

  it("a page that may be shown again as it was holds no connection, and catches up", async () => {
    const { world, client } = await settled();
    const turn = (name: string) => window.dispatchEvent(Object.assign(new Event(name), { persisted: true }));
    turn("pagehide");
    expect(world.socket.closed).toBe(true);
    world.license = professional();
    turn("pageshow");
    await pass();
    expect([world.sockets.length, features(client)]).toEqual([2, ["crm", "tickets"]]);
  });

  it("asks now and then although it is told", async () => {
    const { world } = await settled();
    const asks = world.asks;
    await pass(4 * 60_000);
    expect(world.asks).toBe(asks);
    await pass(70_000);
    expect(world.asks).toBe(asks + 1);
  });

  it("ends with the last of it, and begins again", async () => {
    const world = new World();
    const client = new LicenseClient(world.options);
    const end = client.start();
    await pass();
    world.socket.begin(STARTER);
    end();
    expect([world.socket.closed, vi.getTimerCount()]).toEqual([true, 0]);
    const asks = world.asks;
    window.dispatchEvent(new CustomEvent(REFRESH_EVENT));
    await pass(600_000);
    expect([world.asks, world.sockets.length]).toEqual([asks, 1]);
    const again = client.start();
    await pass();
    expect([client.getState().status, world.sockets.length]).toEqual(["ready", 2]);
    again();
  });
});

describe("tabs", () => {
  // Messages between them pass in real time.
  beforeEach(() => vi.useRealTimers());

  it("without a connection hear from another that there is news, and ask for themselves", async () => {
    const [one, other] = [new World(), new World()];
    const [told, deaf] = [begin(one), begin(other)];
    await vi.waitFor(() => expect([features(told), features(deaf)]).toEqual([["tickets"], ["tickets"]]));
    one.license = other.license = professional();
    one.socket.begin(professional());
    await vi.waitFor(() => expect(features(deaf)).toEqual(["crm", "tickets"]));
  });

  it("of another tenant don't", async () => {
    const [one, other] = [new World(), new World({ tenantId: "t-2" })];
    begin(one);
    const stranger = begin(other);
    await vi.waitFor(() => expect(features(stranger)).toEqual(["tickets"]));
    const asks = other.asks;
    one.socket.begin(professional());
    // Longer than a tab waits before it asks once more.
    await new Promise((resolve) => setTimeout(resolve, 1300));
    expect(other.asks).toBe(asks);
  });
});

describe("a denial", () => {
  it("is shown until it is dismissed, and heals what the page shows", async () => {
    const { world, client } = await settled();
    world.license = { ...STARTER, features: {}, revision: 12 };
    const denial = new PaymentRequiredError(402, REFUSAL);
    client.denied(denial);
    expect(client.getState().denial).toBe(denial);
    await pass();
    expect(features(client)).toEqual([]);
    expect(client.getState().denial).toBe(denial);
    client.dismiss();
    expect(client.getState().denial).toBeNull();
  });

  it("heals though the replica that is asked has not heard yet, or nothing answers at first", async () => {
    const denial = new PaymentRequiredError(402, REFUSAL);
    for (const first of [
      () => json(200, professional()),
      () => json(503, { ...REFUSAL, reason: "store_unavailable" }),
    ]) {
      const world = new World();
      world.license = professional();
      const client = begin(world, { webSocketUrl: null });
      await pass(3000);
      world.answers["/license"] = first;
      client.denied(denial);
      await pass(500);
      world.answers = {};
      world.license = { ...STARTER, revision: 12 };
      await pass(3000);
      expect(features(client)).toEqual(["tickets"]);
    }
  });

  it("of a replica that had not heard of an upgrade goes by itself", async () => {
    const { world, client } = await settled();
    world.license = professional();
    world.socket.tell(professional());
    client.denied(new PaymentRequiredError(402, REFUSAL));
    await pass(5000);
    expect(client.getState().denial).toBeNull();
  });

  it("of a limit goes when counting begins anew, and no sooner, whatever is told of its use meanwhile", async () => {
    const world = new World();
    const { client } = await settled(world);
    const resets_at = new Date(NOON + 60_000).toISOString();
    const limited = { ...REFUSAL, feature: "tickets", reason: "usage_limit_exceeded", limit: 100, used: 100 } as const;
    const told = { type: "usage_threshold", feature: "tickets", percent: 100, used: 100, limit: 100 };
    world.socket.say({ ...told, resetsAt: resets_at });
    client.denied(new PaymentRequiredError(402, { ...limited, resets_at }));
    await pass(50_000);
    expect(client.getState().denial).not.toBeNull();
    await pass(10_000);
    expect(client.getState().denial).toBeNull();
  });

  it("after another asks no more than once a second", async () => {
    const { world, client } = await settled();
    const asks = world.asks;
    for (let count = 0; count < 600; count += 1) {
      client.denied(new PaymentRequiredError(402, REFUSAL));
      await pass(100);
    }
    expect(world.asks - asks).toBeLessThanOrEqual(61);
  });

  it("goes when the feature is bought", async () => {
    const { world, client } = await settled();
    client.denied(new PaymentRequiredError(402, REFUSAL));
    await pass();
    world.socket.tell(professional());
    expect(client.getState().denial).toBeNull();
  });
});

describe("an upgrade", () => {
  it("holds when it is answered", async () => {
    const { world, client } = await settled();
    world.answers["/license/upgrade"] = () => json(200, professional(20));
    expect(await client.upgrade("professional")).toEqual({ status: "applied", license: professional(20) });
    expect(features(client)).toEqual(["crm", "tickets"]);
    const { method, headers, init } = world.asked.at(-1) ?? {};
    expect([method, init?.body, headers?.get("Content-Type")]).toEqual([
      "POST",
      '{"new_plan":"professional"}',
      "application/json",
    ]);
  });

  it("may be written down for billing", async () => {
    const { world, client } = await settled();
    world.answers["/license/upgrade"] = () => json(202, { status: "requested" });
    expect(await client.upgrade("professional")).toEqual({ status: "requested" });
    expect(features(client)).toEqual(["tickets"]);
  });

  it("that may have been made is asked for again by the same key, and no other", async () => {
    const { world, client } = await settled();
    const keys: (string | null)[] = [];
    const outcomes = [() => Promise.reject(new TypeError()), () => json(200, professional(20))];
    world.answers["/license/upgrade"] = ({ headers }) => {
      keys.push(headers.get("Idempotency-Key"));
      return outcomes.shift()?.() ?? json(200, professional(20));
    };
    const upgraded = client.upgrade("professional");
    await pass(1000);
    expect((await upgraded).status).toBe("applied");
    await client.upgrade("professional");
    expect(keys[0]).toBeTruthy();
    expect([keys[1] === keys[0], keys[2] === keys[0]]).toEqual([true, false]);
  });

  it("that is refused says why", async () => {
    const { world, client } = await settled();
    world.answers["/license/upgrade"] = () => json(403, { ...REFUSAL, reason: "not_allowed", message: "No." });
    await expect(client.upgrade("professional")).rejects.toMatchObject({ status: 403, reason: "not_allowed" });
  });
});

it("a base may have a path, for both ways", async () => {
  const world = new World();
  begin(world, { baseUrl: "https://api.test/isp/" });
  await pass();
  expect([world.asked[0]?.path, world.socket.url]).toEqual(["/isp/license", "wss://api.test/isp/ws/license"]);
});

it("what is for sale is asked for once, and again after a failure", async () => {
  const { world, client } = await settled();
  world.answers["/license/plans"] = () => json(401, { ...REFUSAL, reason: "tenant_missing" });
  await client.loadOffers();
  expect(client.getState().offers).toBeNull();
  world.answers = {};
  // Though nobody asks anew.
  await pass(30_000);
  expect(client.getState().offers).toEqual(world.offers);
  const asked = world.asked.length;
  await client.loadOffers();
  expect(world.asked.length).toBe(asked);
});

it("a click is sent at once and outlives the page", async () => {
  const { world, client } = await settled(new World(), { token: async () => "jwt" });
  client.clicked("crm");
  const { method, path, init, headers } = world.asked.at(-1) ?? {};
  expect([method, path, init?.keepalive, init?.body]).toEqual([
    "POST",
    "/license/upgrade-click",
    true,
    '{"feature":"crm"}',
  ]);
  expect(headers?.get("Authorization")).toBe("Bearer jwt");
  world.answers["/license/upgrade-click"] = () => Promise.reject(new TypeError());
  client.clicked("crm");
  await pass();
  // A token that is there is the one of now.
  client.configure({ ...world.options, token: () => "new" });
  client.clicked("crm");
  await pass();
  expect(world.asked.at(-1)?.headers.get("Authorization")).toBe("Bearer new");
  const broken = () => {
    throw new Error("no fetch");
  };
  client.configure({ ...world.options, fetch: broken });
  expect(() => client.clicked("crm")).not.toThrow();
});
