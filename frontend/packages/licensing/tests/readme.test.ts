// @vitest-environment node

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import * as licensing from "../src/index.js";

const at = (path: string) => new URL(path, import.meta.url).pathname;

/** Where modules are found as a user's would be. */
const DIR = `${at("../../../node_modules/.cache")}/readme-${process.pid}`;

/** As Next.js has it, whose types are not installed for this. */
const NEXT_LINK = `declare module "next/link" {
  import type { AnchorHTMLAttributes, ForwardRefExoticComponent, RefAttributes } from "react";
  type Props = Omit<AnchorHTMLAttributes<HTMLAnchorElement>, "href"> & { href: string | URL };
  const Link: ForwardRefExoticComponent<Props & RefAttributes<HTMLAnchorElement>>;
  export default Link;
}`;

/** What the compiler says of these files, with the types of one React or the other. */
function compile(files: Record<string, string>, react: string): string {
  rmSync(DIR, { recursive: true, force: true });
  mkdirSync(DIR, { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(`${DIR}/${name}`, text);
  const types = at(react === "react-18" ? "../../../react-18/node_modules/@types" : "../../../node_modules/@types");
  const paths = Object.fromEntries(["react", "react/*"].map((name) => [name, [`${types}/${name}`]]));
  const options = {
    noEmit: true,
    jsx: "react-jsx",
    module: "NodeNext",
    target: "ES2022",
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: false,
    types: ["react"],
    typeRoots: [types],
    paths,
  };
  writeFileSync(`${DIR}/tsconfig.json`, JSON.stringify({ compilerOptions: options, files: Object.keys(files) }));
  writeFileSync(`${DIR}/package.json`, '{"type":"module"}');
  try {
    return execFileSync("node", [at("../../../node_modules/typescript/bin/tsc"), "--project", DIR], {
      encoding: "utf8",
    });
  } catch (error) {
    return String((error as { stdout?: unknown }).stdout);
  }
}

it("the examples of the README compile against what is published", { timeout: 60_000 }, ({ task }) => {
  const react = task.file.projectName ?? "";
  const readme = readFileSync(at("../README.md"), "utf8");
  const blocks = [...readme.matchAll(/^```(tsx?)\n(.*?)^```/gms)].map(([, kind, text = ""], index) => {
    // As it calls itself, where it does.
    const name = text.match(/\/\/ app\/(\w+\.tsx)$/m)?.[1] ?? `example-${index}.${kind}`;
    return [name, text];
  });
  expect(blocks.map(([name]) => name)).toEqual(["example-0.tsx", "example-1.ts", "Providers.tsx", "layout.tsx"]);
  expect(compile({ ...Object.fromEntries(blocks), "next.d.ts": NEXT_LINK }, react)).toBe("");
  const wrong = 'import { useLicence } from "@dotmac/licensing"; useLicence();';
  expect(compile({ "wrong.ts": wrong }, react)).toContain("useLicense");
});

it("everything that is exported is in the README", () => {
  const readme = readFileSync(at("../README.md"), "utf8");
  const names = Object.keys(licensing);
  expect(names.length).toBeGreaterThan(15);
  expect(names.filter((name) => !readme.includes(name))).toEqual([]);
});

it("its version is the proxy's, and the portal is built on it", () => {
  const version = readFileSync(at("../../../../Cargo.toml"), "utf8").match(
    /^\[workspace.package\]\nversion = "(.*)"$/m,
  )?.[1];
  const stated = (path: string) => JSON.parse(readFileSync(at(path), "utf8"));
  expect(version).toBeTruthy();
  expect(stated("../package.json").version).toBe(version);
  expect(stated("../../../apps/customer/package.json").dependencies["@dotmac/licensing"]).toBe(version);
});
