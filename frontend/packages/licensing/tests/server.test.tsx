// @vitest-environment node

import { version } from "react-dom";
import { renderToString } from "react-dom/server";
import { expect, it } from "vitest";
import * as licensing from "../src/index.js";
import { Navigation } from "./Navigation.js";
import { professional, World } from "./world.js";

const { FeatureGate, LicenseProvider } = licensing;

function page(world: World, props: Partial<licensing.LicenseProviderProps> = {}) {
  return (
    <LicenseProvider {...world.options} {...props}>
      <Navigation />
      <FeatureGate feature="crm" loading="wait" fallback="no">
        customers
      </FeatureGate>
    </LicenseProvider>
  );
}

it("runs on the React that it should", ({ task }) => {
  expect(`react-${version.split(".")[0]}`).toBe(task.file.projectName);
});

it("there is no window", () => {
  expect([typeof window, typeof document]).toEqual(["undefined", "undefined"]);
  expect(Object.keys(licensing)).toContain("LicenseProvider");
});

it("a server renders what needs no licence, and asks nobody", () => {
  const world = new World();
  const html = renderToString(page(world));
  expect(html).toContain("wait");
  expect(html).toContain("<span>Dashboard</span><span>Network</span></nav>");
  expect(html).not.toContain("customers");
  expect([world.asked.length, world.sockets.length]).toEqual([0, 0]);
});

it("and what passes by a licence that it has asked for itself", () => {
  const html = renderToString(page(new World(), { initialLicense: professional() }));
  expect(html).toContain("customers");
  expect(html).toContain("<span>CRM</span>");
});

it("a refusal becomes an error there too", async () => {
  const { REFUSAL, json } = await import("./world.js");
  expect(await licensing.paymentRequired(json(402, REFUSAL))).toBeInstanceOf(licensing.PaymentRequiredError);
});
