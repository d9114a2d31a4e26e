// The browser of browser.rs: Chromium under Playwright, told what to do over a Unix socket. A connection is one call: a JSON
// object up to the caller's end of the stream, and one back, `{"value"}` or `{"error", "url", "problems"}`.
//
//   node browser.mjs SOCKET CHROMIUM FLAG …

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";

const require = createRequire(new URL("../../../frontend/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [socketPath, executablePath, ...flags] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  headless: true,
  handleSIGTERM: false,
  args: flags,
});
// The same on every developer's machine.
const context = await browser.newContext({ locale: "en-US", timezoneId: "UTC" });
const tabs = [];

// How a call is made: `calls.NAME({ tab, page, limit }, ...arguments)`.
const calls = {
  async tab() {
    const page = await context.newPage();
    return tabs.push(watch(page)) - 1;
  },
  setOffline: (_, offline) => context.setOffline(offline),

  goto: ({ page, limit }, url) => page.goto(url, { timeout: limit }).then(() => null),
  reload: ({ page, limit }) => page.reload({ timeout: limit }).then(() => null),
  close: ({ page }) => page.close(),
  url: ({ page }) => page.url(),

  click: ({ page, limit }, role, name) => page.getByRole(role, { name, exact: true }).click({ timeout: limit }),
  press: ({ page }, key) => page.keyboard.press(key),
  fill: ({ page, limit }, label, text) => page.getByLabel(label, { exact: true }).fill(text, { timeout: limit }),

  text: ({ page, limit }, selector) => page.locator(selector).innerText({ timeout: limit }),
  count: ({ page }, role, name) => page.getByRole(role, { name, exact: true }).count(),
  waitForText: ({ page, limit }, text) =>
    page.getByText(text).filter({ visible: true }).first().waitFor({ timeout: limit }),

  evaluate: ({ page }, js, argument) => page.evaluate(functionOf(js), argument),
  addInitScript: ({ page }, js) => page.addInitScript({ content: js }).then(() => null),
  // Playwright's own waitForFunction takes a promise for a yes.
  async waitUntil({ page, limit }, js, argument) {
    const predicate = functionOf(js);
    const deadline = Date.now() + limit;
    for (;;) {
      let value;
      try {
        value = await page.evaluate(predicate, argument);
      } catch (error) {
        // The page has gone to another address meanwhile: asked again there.
        if (!/execution context was destroyed|because of a navigation/i.test(error.message)) throw error;
      }
      if (value) return value;
      if (Date.now() > deadline) throw new Error(`still ${JSON.stringify(value)} after ${limit} ms`);
      await sleep(20);
    }
  },

  // Playwright has every tab believe that it is in front and focused. A page that is seen is never frozen, and only the
  // session that asked for the belief can take it back.
  async freeze({ page }) {
    await beInFront(page, false);
    await lifecycle(page, "frozen");
    const seen = await page.evaluate(() => document.visibilityState);
    if (seen !== "hidden") throw new Error(`the tab is not frozen: it is ${seen}`);
  },
  async thaw({ page }) {
    await lifecycle(page, "active");
    await beInFront(page, true);
  },

  screenshot: ({ page, limit }, path) => page.screenshot({ path, fullPage: true, timeout: limit }).then(() => null),
  async accessibility({ page }) {
    for (const frame of page.frames()) await frame.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    return violations.map(({ id, impact, help, nodes }) => ({
      id,
      impact,
      help,
      nodes: nodes.map(({ html }) => html),
    }));
  },
  problems: ({ tab }) => tab.problems,
  requests: ({ tab }, substring) =>
    [...tab.requests.values()].filter(
      ({ url, status, failure }) => url.includes(substring) && (status !== undefined || failure !== undefined),
    ),
};

// A page, and what is kept of it from its start.
function watch(page) {
  const tab = { page, problems: [], requests: new Map() };
  page.on("pageerror", (error) => tab.problems.push(`page error: ${error}`));
  page.on("crash", () => tab.problems.push("the page has crashed"));
  page.on("console", (message) => {
    if (!["error", "warning"].includes(message.type())) return;
    const { url, lineNumber } = message.location();
    tab.problems.push(`console ${message.type()}: ${message.text()} (${url}:${lineNumber + 1})`);
  });
  const keep = (request, seen) => Object.assign(tab.requests.get(request) ?? {}, seen);
  page.on("request", (request) => {
    tab.requests.set(request, { method: request.method(), url: request.url(), finished: false });
  });
  page.on("response", (response) => keep(response.request(), { status: response.status() }));
  page.on("requestfinished", (request) => keep(request, { finished: true }));
  page.on("requestfailed", (request) => keep(request, { finished: true, failure: request.failure().errorText }));
  return tab;
}

// Playwright takes a text for an expression, and only a function for a function.
function functionOf(js) {
  const value = new Function(`return (${js}\n)`)();
  if (typeof value !== "function") throw new Error(`not a function: ${js}`);
  return value;
}

async function lifecycle(page, state) {
  const session = await context.newCDPSession(page);
  await session.send("Page.setWebLifecycleState", { state });
  await session.detach();
}

async function beInFront(page, enabled) {
  const session = page._connection?.toImpl?.(page)?.delegate?._mainFrameSession?._client;
  if (!session) throw new Error("this version of playwright-core keeps its session elsewhere: see beInFront");
  await session.send("Emulation.setFocusEmulationEnabled", { enabled });
}

async function answer(asked) {
  let tab;
  try {
    const { call, tab: number, limit, arguments: given } = JSON.parse(asked);
    tab = tabs[number];
    const overdue = new AbortController();
    // A moment longer than what Playwright is given, which says more.
    const late = sleep(limit + 1000, null, { signal: overdue.signal }).then(() => {
      throw new Error(`nothing within ${limit} ms`);
    });
    const done = calls[call]({ tab, page: tab?.page, limit }, ...given);
    const value = await Promise.race([done, late]).finally(() => {
      late.catch(() => {});
      overdue.abort();
    });
    return JSON.stringify({ value: value ?? null });
  } catch (error) {
    const message = stripVTControlCharacters(String(error?.message ?? error));
    return JSON.stringify({ error: message, url: tab?.page.url(), problems: tab?.problems });
  }
}

const server = createServer({ allowHalfOpen: true }, (connection) => {
  let asked = "";
  connection.setEncoding("utf8");
  connection.on("data", (text) => {
    asked += text;
  });
  connection.on("end", async () => connection.end(await answer(asked)));
  // A test that no longer waits.
  connection.on("error", () => {});
});
server.listen(socketPath);

process.on("SIGTERM", async () => {
  await browser.close();
  process.exit(0);
});
