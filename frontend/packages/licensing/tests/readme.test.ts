// @vitest-environment node

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";

const at = (path: string) => new URL(path, import.meta.url).pathname;

/** Where modules are found as a user's would be. */
const DIR = `${at("../../../node_modules/.cache")}/readme-${process.pid}`;

function compile(blocks: Record<string, string>): string {
  rmSync(DIR, { recursive: true, force: true });
  mkdirSync(DIR, { recursive: true });
  for (const [name, text] of Object.entries(blocks)) writeFileSync(`${DIR}/${name}`, text);
  const options = {
    noEmit: true,
    jsx: "react-jsx",
    module: "NodeNext",
    target: "ES2022",
    strict: true,
    types: ["react"],
  };
  writeFileSync(`${DIR}/tsconfig.json`, JSON.stringify({ compilerOptions: options, files: Object.keys(blocks) }));
  writeFileSync(`${DIR}/package.json`, '{"type":"module"}');
  try {
    return execFileSync("node", [at("../../../node_modules/typescript/bin/tsc"), "--project", DIR], {
      encoding: "utf8",
    });
  } catch (error) {
    return String((error as { stdout?: unknown }).stdout);
  }
}

it("the examples of the README compile against what is published", { timeout: 60_000 }, () => {
  const readme = readFileSync(at("../README.md"), "utf8");
  const blocks = [...readme.matchAll(/^```(tsx?)\n(.*?)^```/gms)].map(([, kind, text], index) => [
    `example-${index}.${kind}`,
    text ?? "",
  ]);
  expect(blocks.length).toBe(3);
  expect(compile(Object.fromEntries(blocks))).toBe("");
  expect(compile({ "wrong.ts": 'import { useLicence } from "@dotmac/licensing"; useLicence();' })).toContain(
    "useLicense",
  );
});

it("every name that is exported is in the README", () => {
  const names = readFileSync(at("../src/index.ts"), "utf8").matchAll(
    /\b(?!type\b)([A-Z]\w+|use\w+|paymentRequired|licensedFetch|NAVIGATION)\b/g,
  );
  const readme = readFileSync(at("../README.md"), "utf8");
  const values = [...names]
    .map(([name]) => name)
    .filter((name) => /^(use|paymentRequired|licensedFetch|NAV)/.test(name));
  expect(values.length).toBeGreaterThan(8);
  expect(values.filter((name) => !readme.includes(name))).toEqual([]);
});
