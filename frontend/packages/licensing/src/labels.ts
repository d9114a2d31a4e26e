import { own } from "./state.js";

/** What features and plans are called where nobody has said it. */
const USUAL: Readonly<Record<string, string>> = {
  crm: "CRM",
  tickets: "Support",
  fieldops: "Field Ops",
};

/** The name for people of a feature or plan. */
export function labelOf(name: string, labels: Readonly<Record<string, string>> = {}): string {
  const told = own(labels, name) ?? own(USUAL, name);
  if (told !== undefined) return told;
  const words = name.replace(/[_-]+/g, " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A list for people: `a, b or c`. */
export function listed(names: readonly string[]): string {
  const last = names.at(-1) ?? "";
  return names.length < 2 ? last : `${names.slice(0, -1).join(", ")} or ${last}`;
}
