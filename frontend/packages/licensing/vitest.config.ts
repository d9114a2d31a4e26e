import { defineConfig } from "vitest/config";

/** The other React, from the workspace that has nothing else. */
const react18 = (module: string) => new URL(`../../react-18/node_modules/${module}`, import.meta.url).pathname;

export default defineConfig({
  test: {
    include: ["tests/**/*.test.{ts,tsx}"],
    environment: "jsdom",
    restoreMocks: true,
    unstubGlobals: true,
    projects: [
      { extends: true, test: { name: "react-19" } },
      {
        extends: true,
        resolve: {
          alias: [
            // Its other build asks Node for React, past these aliases.
            {
              find: "@testing-library/react",
              replacement: "@testing-library/react/dist/@testing-library/react.esm.js",
            },
            { find: /^react(\/.*)?$/, replacement: `${react18("react")}$1` },
            { find: /^react-dom(\/.*)?$/, replacement: `${react18("react-dom")}$1` },
          ],
        },
        test: { name: "react-18", server: { deps: { inline: [/@testing-library\/react/] } } },
      },
    ],
  },
});
