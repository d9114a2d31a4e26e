/** An entry of a portal's navigation. */
export interface NavigationEntry {
  readonly id: string;
  readonly label: string;
  readonly path: string;
  /** The feature that it belongs to; none: it is always there. */
  readonly feature?: string;
}

/** DotMac's modules. */
export const NAVIGATION: readonly NavigationEntry[] = [
  { id: "dashboard", label: "Dashboard", path: "/" },
  { id: "network", label: "Network", path: "/network" },
  { id: "crm", label: "CRM", path: "/crm", feature: "crm" },
  { id: "support", label: "Support", path: "/support", feature: "tickets" },
  { id: "projects", label: "Projects", path: "/projects", feature: "projects" },
  {
    id: "fieldops",
    label: "Field Ops",
    path: "/fieldops",
    feature: "fieldops",
  },
  {
    id: "analytics",
    label: "Analytics",
    path: "/analytics",
    feature: "analytics",
  },
];
