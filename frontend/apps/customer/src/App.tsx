import { NAVIGATION, PaymentRequiredPrompt, useLicense, useNavigation } from "@dotmac/licensing";
import { useEffect } from "react";
import { Link, Route, Switch, useLocation } from "wouter";
import { Dashboard } from "./Dashboard.js";
import { Module } from "./Module.js";
import type { Settings } from "./settings.js";
import { Upgrade } from "./Upgrade.js";

type Tenants = NonNullable<Settings["tenants"]>;

export function App({ tenants }: { readonly tenants: Tenants }) {
  const { license, error, isLoading } = useLicense();
  const [location] = useLocation();
  const place = NAVIGATION.find(({ path }) => path === location)?.label ?? "Plans";
  useEffect(() => {
    document.title = `${place} – DotMac portal`;
  }, [place]);
  if (isLoading && error?.reason === "tenant_missing") return <SignIn tenants={tenants} />;
  return (
    <>
      <a className="skip" href="#content">
        Skip to the content
      </a>
      <header>
        <p className="brand">DotMac</p>
        <Plan plan={license?.planTier ?? null} isLoading={isLoading} />
      </header>
      <div className="columns">
        <Navigation />
        <main id="content" tabIndex={-1}>
          <Switch>
            <Route path="/">
              <Dashboard />
            </Route>
            <Route path="/billing/upgrade">
              <Upgrade />
            </Route>
            {NAVIGATION.filter(({ path }) => path !== "/").map((entry) => (
              <Route key={entry.id} path={entry.path}>
                <Module entry={entry} />
              </Route>
            ))}
            <Route>
              <h1>There is no such page</h1>
            </Route>
          </Switch>
          <PaymentRequiredPrompt />
        </main>
      </div>
    </>
  );
}

function Navigation() {
  const [location] = useLocation();
  return (
    <nav aria-label="Modules">
      <ul>
        {useNavigation().map(({ id, label, path }) => (
          <li key={id} data-entry={id}>
            <Link href={path} aria-current={location === path ? "page" : undefined}>
              {label}
            </Link>
          </li>
        ))}
      </ul>
    </nav>
  );
}

function Plan({ plan, isLoading }: { readonly plan: string | null; readonly isLoading: boolean }) {
  const { connection } = useLicense();
  const text = isLoading ? "Your licence is being looked up" : plan === null ? "No licence" : `Plan: ${plan}`;
  return (
    <p className="plan" data-connection={connection}>
      {text} <span className="connection">{connection === "live" ? "up to date" : connection}</span>
    </p>
  );
}

function SignIn({ tenants }: { readonly tenants: Tenants }) {
  return (
    <main className="sign-in">
      <h1>Who are you?</h1>
      <p>This host names no tenant. Each tenant of the demo has a host of its own:</p>
      <ul>
        {tenants.map(({ name, url }) => (
          <li key={url}>
            <a href={url}>Go on as the tenant with the plan {name}</a>
          </li>
        ))}
      </ul>
    </main>
  );
}
