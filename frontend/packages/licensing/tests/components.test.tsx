import { act, cleanup, render, screen, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import axe from "axe-core";
import { type ReactNode, StrictMode } from "react";
import { afterEach, describe, expect, it, vi } from "vitest";
import {
  FeatureGate,
  type License,
  LicenseProvider,
  type LicenseProviderProps,
  licensedFetch,
  PaymentRequiredError,
  PaymentRequiredPrompt,
  paymentRequired,
  UpgradePrompt,
  UsageLimitReached,
  useFeature,
  useLicense,
  useNavigation,
  useOffers,
  useUpgrade,
  useUsage,
} from "../src/index.js";
import { Navigation } from "./Navigation.js";
import { json, OFFERS, professional, REFUSAL, refusal, STARTER, World } from "./world.js";

afterEach(cleanup);

function show(world: World, children: ReactNode, props: Partial<LicenseProviderProps> = {}) {
  return render(
    <LicenseProvider {...world.options} {...props}>
      {children}
    </LicenseProvider>,
    { wrapper: StrictMode },
  );
}

/** Until the first answer is shown. */
async function ready(world: World, children: ReactNode, props: Partial<LicenseProviderProps> = {}) {
  const shown = show(world, children, props);
  await act(async () => {
    await vi.waitFor(() => expect(world.asks).toBeGreaterThan(0));
  });
  return shown;
}

/** The WebSocket tells it; first of all it opens. */
const tell = (world: World, license: License | null) =>
  act(async () => (world.socket.isOpen ? world.socket.tell(license) : world.socket.begin(license)));

/** What axe finds wrong with the page; colours apart, which nobody has here. */
async function faults() {
  const { violations } = await axe.run(document.body, { rules: { region: { enabled: false } } });
  return violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
}

describe("useLicense", () => {
  function Shown() {
    const { isLoading, license, hasFeature, status } = useLicense();
    return <p>{[status, isLoading, license?.planTier ?? "none", hasFeature("crm")].join(" ")}</p>;
  }

  /** A component, and the plan that it has at each render. */
  function recorder() {
    const seen: string[] = [];
    function Recorded() {
      const { license, isLoading } = useLicense();
      seen.push(isLoading ? "loading" : (license?.planTier ?? "none"));
      return null;
    }
    return { seen, Recorded };
  }

  it.each([
    ["useLicense", () => useLicense()],
    ["useFeature", () => useFeature("crm")],
    ["useUsage", () => useUsage("crm")],
    ["useUpgrade", () => useUpgrade()],
  ])("%s outside of a provider says what is missing", (name, use) => {
    const Lost = () => {
      use();
      return null;
    };
    vi.spyOn(console, "error").mockImplementation(() => {});
    expect(() => render(<Lost />)).toThrow(`${name} is used outside of <LicenseProvider>`);
  });

  it("says that it is loading, then what there is, then that there is nothing", async () => {
    const world = new World();
    show(world, <Shown />);
    expect(screen.getByText("loading true none false")).toBeTruthy();
    expect(await screen.findByText("ready false starter false")).toBeTruthy();
    await tell(world, professional());
    expect(screen.getByText("ready false professional true")).toBeTruthy();
    await tell(world, null);
    expect(screen.getByText("ready false none false")).toBeTruthy();
  });

  it("begins anew for another tenant, and shows nothing of the one before", async () => {
    const world = new World();
    const { seen, Recorded } = recorder();
    const { rerender } = await ready(world, <Recorded />);
    await tell(world, professional());
    seen.length = 0;
    const [before] = world.sockets.slice(-1);
    world.license = STARTER;
    rerender(
      <LicenseProvider {...world.options} tenantId="t-2">
        <Recorded />
      </LicenseProvider>,
    );
    expect(seen).not.toContain("professional");
    await vi.waitFor(() => expect(seen.at(-1)).toBe("starter"));
    expect(before?.closed).toBe(true);
    expect(world.asked.at(-1)?.headers.get("X-Tenant-ID")).toBe("t-2");
  });

  it("shows another tenant nothing of what the first was given at the start", async () => {
    const world = new World();
    const { seen, Recorded } = recorder();
    const page = (tenantId: string, webSocketUrl?: null) => (
      <LicenseProvider
        {...world.options}
        tenantId={tenantId}
        webSocketUrl={webSocketUrl}
        initialLicense={professional()}
      >
        <Recorded />
      </LicenseProvider>
    );
    const { rerender } = render(page("t-1"));
    expect(seen[0]).toBe("professional");
    await vi.waitFor(() => expect(world.sockets.length).toBeGreaterThan(0));
    seen.length = 0;
    rerender(page("t-2"));
    expect(seen[0]).toBe("loading");
    // To have no WebSocket is another way of asking, too.
    await vi.waitFor(() => expect(world.sockets.length).toBe(2));
    rerender(page("t-2", null));
    await vi.waitFor(() => expect(world.socket.closed).toBe(true));
    expect(world.sockets.length).toBe(2);
  });

  it("goes on with other functions at each render", async () => {
    const world = new World();
    const { rerender } = await ready(world, <Shown />, { headers: () => ({ "X-Turn": "1" }) });
    const count = world.sockets.length;
    rerender(
      <LicenseProvider {...world.options} headers={() => ({ "X-Turn": "2" })}>
        <Shown />
      </LicenseProvider>,
    );
    await act(async () => window.dispatchEvent(new CustomEvent("license:refresh")));
    expect(world.asked.at(-1)?.headers.get("X-Turn")).toBe("2");
    expect(world.sockets.length).toBe(count);
  });

  it("renders those anew whose part has changed, and no others", async () => {
    const world = new World();
    let renders = 0;
    function HasTickets() {
      renders += 1;
      return <p>{String(useFeature("tickets"))}</p>;
    }
    await ready(world, <HasTickets />);
    expect(await screen.findByText("true")).toBeTruthy();
    const before = renders;
    await tell(world, professional());
    await tell(world, professional(12));
    expect(renders).toBe(before);
  });
});

describe("FeatureGate", () => {
  const children = vi.fn(() => <p>customers</p>);

  it("renders nothing of it while nothing is known, and nothing for those without", async () => {
    const world = new World();
    children.mockClear();
    const { container } = show(
      world,
      <FeatureGate feature="crm" fallback={<p>no</p>} loading={<p>wait</p>}>
        {children}
      </FeatureGate>,
    );
    expect(screen.getByText("wait")).toBeTruthy();
    expect(await screen.findByText("no")).toBeTruthy();
    expect(screen.queryByText("wait")).toBeNull();
    expect(container.innerHTML).not.toContain("customers");
    expect(children).not.toHaveBeenCalled();
    await tell(world, professional());
    expect(screen.getByText("customers")).toBeTruthy();
    expect(screen.queryByText("no")).toBeNull();
    await tell(world, { ...STARTER, revision: 12 });
    expect(container.innerHTML).not.toContain("customers");
  });

  it("keeps what belongs to it mounted while the licence changes in other ways", async () => {
    const world = new World();
    world.license = professional();
    await ready(
      world,
      <FeatureGate feature="crm">
        <input aria-label="name" />
      </FeatureGate>,
    );
    await userEvent.type(await screen.findByLabelText("name"), "Ada");
    const field = screen.getByLabelText("name");
    await tell(world, professional(12));
    await act(async () => world.socket.lose());
    expect(screen.getByLabelText("name")).toBe(field);
    expect((field as HTMLInputElement).value).toBe("Ada");
  });

  it("renders nothing for null, and the prompt by default", async () => {
    const world = new World();
    const { container } = await ready(
      world,
      <FeatureGate feature="fieldops" fallback={null}>
        <p>x</p>
      </FeatureGate>,
    );
    await vi.waitFor(() => expect(container.querySelector("p")).toBeNull());
    cleanup();
    await ready(world, <FeatureGate feature="fieldops">x</FeatureGate>);
    expect(await screen.findByRole("article", { name: "Field Ops is not in your plan" })).toBeTruthy();
  });
});

describe("UpgradePrompt", () => {
  it("says what is missing, which plans have it, and leads there", async () => {
    await ready(new World(), <UpgradePrompt feature="crm" />);
    const prompt = await screen.findByRole("article", { name: "CRM is not in your plan" });
    expect(
      await within(prompt).findByText(
        "The plan Starter does not include CRM. It is included in Professional or Enterprise.",
      ),
    ).toBeTruthy();
    const link = within(prompt).getByRole("link", { name: "See plans with CRM" });
    expect(link.getAttribute("href")).toBe("/billing/upgrade?feature=crm");
    expect(await faults()).toEqual([]);
  });

  it("goes by the proxy's own words for what is for sale, else by what it was given", async () => {
    const world = new World();
    world.offers = { ...OFFERS, upgradeUrl: "https://shop.test/{feature}?a" };
    await ready(world, <UpgradePrompt feature="a b" />);
    await vi.waitFor(() => expect(screen.getByRole("link").getAttribute("href")).toBe("https://shop.test/a%20b?a"));
    cleanup();
    const older = new World();
    older.offers = null;
    await ready(older, <UpgradePrompt feature="crm" />, { upgradeUrl: "/buy/{feature}", labels: { crm: "Customers" } });
    const prompt = await screen.findByRole("article", { name: "Customers is not in your plan" });
    expect(prompt.textContent).toContain("The plan Starter does not include Customers.See plans");
    expect(screen.getByRole("link").getAttribute("href")).toBe("/buy/crm");
  });

  it.each<[string, License | null, string, string]>([
    ["no licence", null, "CRM needs a licence", "There is no licence for your organisation yet."],
    [
      "one that has ended",
      { ...STARTER, features: {}, validUntil: "2020-01-02T00:00:00Z" },
      "Your licence has ended",
      "2020-01-02",
    ],
    [
      "one to come",
      { ...STARTER, features: {}, validFrom: "2999-01-02T00:00:00Z" },
      "Your licence has not begun",
      "2999-01-02",
    ],
  ])("tells %s from a plan without it", async (_, license, title, text) => {
    const world = new World();
    world.license = license;
    await ready(world, <UpgradePrompt feature="crm" />);
    const prompt = await screen.findByRole("article", { name: title });
    expect(prompt.textContent).toContain(text);
  });

  it("reports who follows it: by mouse, by keyboard, into another tab, and nobody else", async () => {
    const world = new World();
    const user = userEvent.setup();
    await ready(world, <UpgradePrompt feature="crm" />);
    const link = await screen.findByRole("link");
    link.addEventListener("click", (event) => event.preventDefault());
    const clicks = () => world.asked.filter(({ path }) => path === "/license/upgrade-click").length;
    expect(clicks()).toBe(0);
    await user.click(link);
    expect(clicks()).toBe(1);
    link.focus();
    await user.keyboard("{Enter}");
    expect(clicks()).toBe(2);
    await user.pointer([{ keys: "[MouseMiddle]", target: link }]);
    expect(clicks()).toBe(3);
    await user.pointer([{ keys: "[MouseRight]", target: link }]);
    expect(clicks()).toBe(3);
  });

  it("is said by screen readers, once it is there and while it is", async () => {
    const world = new World();
    await ready(world, <UpgradePrompt feature="crm" />);
    const [status, alert] = [screen.getByRole("status"), screen.getByRole("alert")];
    await vi.waitFor(() => expect(status.textContent).toContain("CRM is not in your plan. The plan Starter"));
    // Once, though the plans came later, and however many gates say it.
    expect(status.textContent).toContain("It is included in Professional or Enterprise.");
    expect(alert.textContent).toBe("");
    cleanup();
    const gates = ["a", "b", "c"].map((key) => <UpgradePrompt key={key} feature="crm" />);
    await ready(new World(), gates);
    await vi.waitFor(() => expect(screen.getByRole("status").querySelectorAll("p").length).toBe(1));
    cleanup();
    await ready(world, null);
    expect(screen.getByRole("status").textContent).toBe("");
  });

  it("says nothing while nothing is known", async () => {
    const world = new World({ fetch: () => new Promise(() => {}) });
    show(world, <UpgradePrompt feature="crm" />);
    await act(async () => {
      await new Promise((resolve) => setTimeout(resolve, 600));
    });
    expect(screen.queryByRole("article")).toBeNull();
    expect(screen.getByRole("status").textContent).toBe("");
  });

  it("takes other words and another link", async () => {
    const Link = ({ href, children }: { href: string; children?: ReactNode }) => <a href={`/app${href}`}>{children}</a>;
    await ready(new World(), <UpgradePrompt feature="crm" headingLevel={4} className="mine" />, {
      linkComponent: Link,
    });
    expect((await screen.findByRole("link")).getAttribute("href")).toBe("/app/billing/upgrade?feature=crm");
    expect(screen.getByRole("heading", { level: 4 }).closest("article")?.className).toBe("mine");
    cleanup();
    await ready(
      new World(),
      <UpgradePrompt feature="crm">{({ plans, reason }) => <i>{`${reason}: ${plans.join()}`}</i>}</UpgradePrompt>,
    );
    expect(await screen.findByText("feature_not_in_plan: professional,enterprise")).toBeTruthy();
  });
});

describe("UsageLimitReached", () => {
  it("is there when the limit is used up, and gone when there is more", async () => {
    const world = new World();
    await ready(world, <UsageLimitReached feature="tickets" />);
    await vi.waitFor(() => expect(world.sockets.length).toBeGreaterThan(0));
    await tell(world, STARTER);
    expect(screen.queryByRole("article")).toBeNull();
    const resetsAt = "2999-12-01T00:00:00Z";
    await act(async () =>
      world.socket.say({ type: "usage_threshold", feature: "tickets", percent: 100, used: 100, limit: 100, resetsAt }),
    );
    const region = screen.getByRole("article", { name: "Support is used up" });
    expect(region.textContent).toContain("The limit of 100 for Support is used up.");
    expect(await within(region).findByText(/There is more in Professional or Enterprise\./)).toBeTruthy();
    await vi.waitFor(() => expect(screen.getByRole("status").textContent).toContain("Support is used up"));
    expect(await faults()).toEqual([]);
    await act(async () => world.socket.tell({ ...professional(12), usageLimits: {}, currentUsage: { tickets: 100 } }));
    expect(screen.queryByRole("article")).toBeNull();
  });

  it("is there on a 402 of its feature, before anything else has told", async () => {
    const world = new World();
    await ready(world, <UsageLimitReached feature="tickets" />);
    const used = { reason: "usage_limit_exceeded", limit: 100, used: 100, resets_at: "2999-12-01T00:00:00Z" } as const;
    await act(async () => {
      await paymentRequired(refusal({ ...used, feature: "tickets", available_in: ["enterprise"] }, 429));
    });
    const region = await screen.findByRole("article", { name: "Support is used up" });
    expect(region.textContent).toContain("Counting begins anew on 2999-12-01. There is more in Enterprise.");
  });

  it("is no matter of a feature that is not licensed at all", async () => {
    const world = new World();
    world.license = { ...STARTER, usageLimits: { crm: 0 } };
    await ready(world, <UsageLimitReached feature="crm" />);
    await act(async () => {});
    expect(screen.queryByRole("article")).toBeNull();
  });
});

describe("paymentRequired", () => {
  it("is a typed error with all that the 402 says, and leaves the response unread", async () => {
    const response = refusal({ reason: "usage_limit_exceeded", limit: 3, used: 4, resets_at: "2026-12-01T00:00:00Z" });
    const denied = await paymentRequired(response);
    expect(denied).toBeInstanceOf(PaymentRequiredError);
    expect(denied).toMatchObject({
      name: "PaymentRequiredError",
      status: 402,
      reason: "usage_limit_exceeded",
      feature: "crm",
      upgradeUrl: "/billing/upgrade?feature=crm",
      plan: "starter",
      requiredPlan: "professional",
      availableIn: ["professional", "enterprise"],
      limit: 3,
      used: 4,
      resetsAt: new Date("2026-12-01T00:00:00Z"),
      requestId: "r-1",
      message: REFUSAL.message,
    });
    expect((await response.json()).request_id).toBe("r-1");
  });

  it.each<[string, Response]>([
    ["a 200", json(200, REFUSAL)],
    ["the backend's own 402", json(402, { error: "card declined" })],
    ["a 401 of the gate", json(401, { ...REFUSAL, reason: "tenant_missing" })],
    ["a page", new Response("<!doctype html>", { status: 402, headers: { "Content-Type": "text/html" } })],
    ["nothing", new Response(null, { status: 402 })],
    ["half a body", new Response('{"error"', { status: 402, headers: { "Content-Type": "application/json" } })],
  ])("is null for %s", async (_, response) => {
    expect(await paymentRequired(response)).toBeNull();
  });

  it("reads problem documents, and statuses that were configured", async () => {
    const headers = { "Content-Type": "application/problem+json; charset=utf-8" };
    const problem = { ...REFUSAL, type: "urn:x", title: "t", status: 402, detail: "d" };
    expect(await paymentRequired(json(402, problem, headers))).toBeInstanceOf(PaymentRequiredError);
    expect((await paymentRequired(refusal({}, 403)))?.status).toBe(403);
  });

  it("licensedFetch throws it, and hands on all else", async () => {
    const ok = json(200, {});
    expect(await licensedFetch(async () => ok)("/x")).toBe(ok);
    await expect(licensedFetch(async () => refusal())("/x")).rejects.toBeInstanceOf(PaymentRequiredError);
  });

  it("leads nowhere but to pages, whoever sent it, and stays standing whatever that is", async () => {
    await ready(new World(), <PaymentRequiredPrompt />, { linkComponent: () => <i>own</i> });
    const hostile = async (change: object) => {
      await act(async () => {
        await paymentRequired(json(402, { ...REFUSAL, ...change }));
      });
      return screen.queryByRole("link")?.getAttribute("href");
    };
    // Where the denial says nothing that may be followed, what is for sale does.
    expect(await hostile({ request_id: "1", upgrade_url: "javascript:alert(1)" })).toBeUndefined();
    expect(screen.getByText("own")).toBeTruthy();
    expect(await hostile({ request_id: "2", upgrade_url: "/\\evil.test" })).toBe("/\\evil.test");
    expect(screen.queryByText("own")).toBeNull();
    await hostile({ request_id: "3", feature: "\ud800", upgrade_url: null });
    expect(screen.getByRole("complementary")).toBeTruthy();
  });

  it("heals an interface that showed too much, with the first denied call", async () => {
    const world = new World();
    world.license = professional();
    const page = (
      <>
        <FeatureGate feature="crm" fallback={null}>
          <p>customers</p>
        </FeatureGate>
        <PaymentRequiredPrompt />
      </>
    );
    await ready(world, page);
    expect(await screen.findByText("customers")).toBeTruthy();
    world.license = { ...STARTER, revision: 12 };
    await act(async () => {
      await paymentRequired(refusal());
    });
    await vi.waitFor(() => expect(screen.queryByText("customers")).toBeNull());
    expect(screen.getByRole("complementary", { name: "Licence" })).toBeTruthy();
  });
});

describe("PaymentRequiredPrompt", () => {
  async function denied(world = new World()) {
    await ready(
      world,
      <>
        <button type="button">work</button>
        <PaymentRequiredPrompt />
      </>,
    );
    screen.getByText("work").focus();
    await act(async () => {
      await paymentRequired(refusal());
    });
    return world;
  }

  it("is said at once, can be reached by keyboard, and gives the focus back", async () => {
    const user = userEvent.setup();
    await denied();
    await vi.waitFor(() => expect(screen.getByRole("alert").textContent).toContain("CRM is not in your plan"));
    expect(document.activeElement).toBe(screen.getByText("work"));
    await user.tab();
    expect(document.activeElement).toBe(screen.getByRole("link", { name: "See plans with CRM" }));
    await user.tab();
    expect(document.activeElement).toBe(screen.getByRole("button", { name: "Not now" }));
    expect(await faults()).toEqual([]);
    await user.keyboard("{Enter}");
    expect(screen.queryByRole("complementary")).toBeNull();
    expect(document.activeElement).toBe(screen.getByText("work"));
    expect(screen.getByRole("alert").textContent).toBe("");
  });

  it("stays as it is for who is denied the same again and again", async () => {
    const user = userEvent.setup();
    await denied();
    await user.tab();
    await vi.waitFor(() => expect(screen.getByRole("alert").textContent).toContain("CRM"));
    const said = screen.getByRole("alert").firstElementChild;
    await act(async () => {
      await paymentRequired(refusal({ request_id: "r-2" }));
      await new Promise((resolve) => setTimeout(resolve, 50));
    });
    expect(document.activeElement).toBe(screen.getByRole("link"));
    expect(screen.getByRole("alert").firstElementChild).toBe(said);
  });

  it("goes by Escape, and by an upgrade, and gives the focus back either way", async () => {
    const world = await denied();
    await userEvent.tab();
    await userEvent.keyboard("{Escape}");
    expect(screen.queryByRole("complementary")).toBeNull();
    expect(document.activeElement).toBe(screen.getByText("work"));
    await act(async () => {
      await paymentRequired(refusal({ request_id: "r-2" }));
    });
    expect(screen.getByRole("complementary")).toBeTruthy();
    await userEvent.tab();
    await tell(world, professional(20));
    expect(screen.queryByRole("complementary")).toBeNull();
    expect(document.activeElement).toBe(screen.getByText("work"));
  });

  it("speaks of the licence where a 402 names no feature", async () => {
    await ready(new World(), <PaymentRequiredPrompt />);
    await act(async () => {
      await paymentRequired(refusal({ feature: null, reason: "no_license", upgrade_url: null, available_in: [] }));
    });
    expect(screen.getByRole("article", { name: "This needs a licence" })).toBeTruthy();
  });
});

describe("useNavigation", () => {
  const shown = () => Array.from(document.querySelectorAll("nav span"), (entry) => entry.textContent);

  it("has what needs nothing from the start, and the rest by the licence", async () => {
    const world = new World();
    show(world, <Navigation />);
    expect(shown()).toEqual(["Dashboard", "Network"]);
    await vi.waitFor(() => expect(shown()).toEqual(["Dashboard", "Network", "Support"]));
    const features = { crm: true, tickets: true, projects: true, fieldops: true, analytics: true };
    await tell(world, { ...STARTER, features, revision: 12 });
    expect(shown()).toEqual(["Dashboard", "Network", "CRM", "Support", "Projects", "Field Ops", "Analytics"]);
    await tell(world, null);
    expect(shown()).toEqual(["Dashboard", "Network"]);
  });

  it("filters other entries too", async () => {
    const entries = [{ icon: "a" }, { icon: "b", feature: "tickets" }, { icon: "c", feature: "crm" }];
    function Icons() {
      return <p>{useNavigation(entries).map(({ icon }) => icon)}</p>;
    }
    await ready(new World(), <Icons />);
    expect(await screen.findByText("ab")).toBeTruthy();
  });
});

describe("useUpgrade", () => {
  function Buy() {
    const { upgrade, isPending, error } = useUpgrade();
    const offers = useOffers();
    return (
      <>
        {offers?.plans.map(({ name }) => (
          <button key={name} type="button" disabled={isPending} onClick={() => upgrade(name)}>
            {name}
          </button>
        ))}
        <p>{error?.message ?? "fine"}</p>
        <FeatureGate feature="crm">customers</FeatureGate>
      </>
    );
  }

  it("buys what is for sale, in effect at once", async () => {
    const world = new World();
    world.answers["/license/upgrade"] = () => json(200, professional(20));
    await ready(world, <Buy />);
    await userEvent.click(await screen.findByRole("button", { name: "professional" }));
    expect(await screen.findByText("customers")).toBeTruthy();
  });

  it("says why not", async () => {
    const world = new World();
    world.answers["/license/upgrade"] = () =>
      json(403, { ...REFUSAL, reason: "not_allowed", message: "Ask an owner." });
    await ready(world, <Buy />);
    await userEvent.click(await screen.findByRole("button", { name: "professional" }));
    expect(await screen.findByText("Ask an owner.")).toBeTruthy();
    expect((screen.getByRole("button", { name: "professional" }) as HTMLButtonElement).disabled).toBe(false);
  });
});
