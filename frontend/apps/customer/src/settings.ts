/** What the portal is told by whoever serves it, at `/portal.json`. */
export interface Settings {
  /** The origin of the API; empty: the portal's own. */
  readonly baseUrl: string;
  readonly webSocketUrl: string;
  /** Headers of each request: what a gateway would add, where there is none. */
  readonly headers?: Record<string, string>;
  /** Who is signed in. */
  readonly token?: string;
  /** Where to sign in as whom: the demo's tenants, each with a host of its own. */
  readonly tenants?: readonly { readonly name: string; readonly url: string }[];
}

export async function loadSettings(): Promise<Settings> {
  const response = await fetch("/portal.json", { cache: "no-store" });
  if (!response.ok) throw new Error(`/portal.json was answered with ${response.status}`);
  return response.json();
}
