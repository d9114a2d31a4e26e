"use client";

import {
  type ReactElement,
  type ReactNode,
  useCallback,
  useEffect,
  useInsertionEffect,
  useMemo,
  useState,
} from "react";
import { Announcer, useAnnouncements } from "./Announcer.js";
import type { LicenseOptions } from "./api.js";
import { LicenseClient } from "./client.js";
import { LicenseContext, type LinkComponent } from "./context.js";
import { labelOf } from "./labels.js";
import { webUrl } from "./urls.js";

/** The proxy's own default. */
const DEFAULT_UPGRADE_URL = "/billing/upgrade?feature={feature}";

export interface LicenseProviderProps extends LicenseOptions {
  readonly children?: ReactNode;
  /** Names for people, by the name of a feature or plan: `{ crm: "CRM", professional: "Professional" }`. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** Where plans are bought, as long as the proxy has not said it. Default: that of the proxy. */
  readonly upgradeUrl?: string | undefined;
  /** What links are rendered with: Next.js's `Link`, wouter's. Default: `a`. */
  readonly linkComponent?: LinkComponent | undefined;
}

/**
 * Keeps the licence of one tenant up to date for all that is below it.
 *
 * Another API or tenant begins anew, at `loading`. Functions, tokens and headers may be others at each render. Where the
 * token alone says who the tenant is, give the provider a `key` that changes with it.
 */
export function LicenseProvider(props: LicenseProviderProps): ReactElement {
  const { children, labels, linkComponent = "a", upgradeUrl = DEFAULT_UPGRADE_URL } = props;
  const client = useClient(props);
  const { announce, spoken } = useAnnouncements();
  const label = useCallback((name: string) => labelOf(name, labels), [labels]);
  const provided = useMemo(
    () => ({ client, upgradeUrl: webUrl(upgradeUrl) ?? DEFAULT_UPGRADE_URL, label, Link: linkComponent, announce }),
    [client, upgradeUrl, label, linkComponent, announce],
  );
  return (
    <LicenseContext.Provider value={provided}>
      {children}
      <Announcer spoken={spoken} />
    </LicenseContext.Provider>
  );
}

/** The client for this API and tenant: another one when they change. */
function useClient(options: LicenseOptions): LicenseClient {
  const { baseUrl, licensePath, webSocketUrl, tenantId, tenantHeader, initialLicense } = options;
  const identity = JSON.stringify([
    baseUrl,
    licensePath,
    webSocketUrl ?? webSocketUrl === null,
    tenantId,
    tenantHeader,
  ]);
  const [held, hold] = useState(() => ({ identity, initialLicense, client: new LicenseClient(options) }));
  let { client } = held;
  if (held.identity !== identity) {
    // Before anything is rendered: nobody sees what another tenant has, by what it was given at the start neither.
    const isOfTheOther = JSON.stringify(initialLicense) === JSON.stringify(held.initialLicense);
    client = new LicenseClient(isOfTheOther ? { ...options, initialLicense: undefined } : options);
    hold({ identity, initialLicense, client });
  }
  // Before the effects of what is rendered, which may ask.
  useInsertionEffect(() => client.configure(options));
  useEffect(() => client.start(), [client]);
  return client;
}
