import { act } from "react";
import { hydrateRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { afterEach, expect, it, vi } from "vitest";
import { FeatureGate, type License, LicenseProvider } from "../src/index.js";
import { professional, STARTER, World } from "./world.js";

declare global {
  var IS_REACT_ACT_ENVIRONMENT: boolean;
}
globalThis.IS_REACT_ACT_ENVIRONMENT = true;

afterEach(() => {
  document.body.innerHTML = "";
});

it.each<[string, License | null | undefined, string]>([
  ["nothing", undefined, "wait"],
  ["a licence with it", professional(), "customers"],
  ["a licence without it", STARTER, "no"],
  ["no licence", null, "no"],
])(
  "the browser takes over what a server rendered with %s, without a word, and goes on from there",
  async (_, initial, html) => {
    const world = new World();
    world.license = professional(20);
    const page = (
      <LicenseProvider {...world.options} initialLicense={initial}>
        <FeatureGate feature="crm" loading={<p>wait</p>} fallback={<p>no</p>}>
          <p>customers</p>
        </FeatureGate>
      </LicenseProvider>
    );
    const complaints = vi.spyOn(console, "error");
    const container = document.createElement("div");
    document.body.append(container);
    container.innerHTML = renderToString(page);
    expect(container.querySelector("p")?.textContent).toBe(html);
    const root = await act(async () => hydrateRoot(container, page));
    await vi.waitFor(() => expect(container.querySelector("p")?.textContent).toBe("customers"));
    expect(complaints).not.toHaveBeenCalled();
    await act(async () => root.unmount());
  },
);
