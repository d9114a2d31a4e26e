import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

/** Where `npm run dev` finds the proxy: `dotmac-license-proxy demo` is there by default. */
const proxy = process.env.DOTMAC_PROXY ?? "http://127.0.0.1:8080";

export default defineConfig({
  plugins: [react()],
  build: { target: "es2022", sourcemap: true },
  server: {
    host: "127.0.0.1",
    allowedHosts: [".localhost"],
    proxy: Object.fromEntries(
      ["/api", "/license", "/portal.json", "/ws"].map((path) => [path, { target: proxy, ws: path === "/ws" }]),
    ),
  },
});
