// The routes of the differential test on Node's frameworks: `node routing.cjs FRAMEWORK PORT`; see ../routing_fastapi.py.
"use strict";

const path = require("node:path");
const files = path.join(__dirname, "..", "files");

const GATED = ["/api/v1/crm", "/api/v1/crm/items", "/api/v1/crm/items/:item", "/api/v1/reports",
  "/api/v1/accounts/:account/export"];

let runs = 0;
const answer = (handler) => {
  runs += handler === "gated" ? 1 : 0;
  return { handler, runs };
};

// The wildcard is written differently by each of them.
const express = (name, rest) => async (port) => {
  const framework = require(name);
  const app = framework();
  const reply = (handler) => (request, response) => response.set("X-Handler", handler).json(answer(handler));
  app.get("/-/runs", reply("control"));
  app.all(GATED, reply("gated"));
  // A router within a router, as larger applications are built.
  const inner = framework.Router();
  inner.get(`/help/${rest}`, reply("open"));
  inner.get(`/files/${rest}`, reply("gated"));
  app.use("/api/v1/crm", inner);
  app.get(`/api/v1/network/${rest}`, reply("core"));
  app.use("/static", framework.static(files));
  app.use(reply("other"));
  app.listen(port, "127.0.0.1");
};

const fastify = (name, options) => async (port) => {
  const app = require(name)(options);
  const reply = (handler) => (request, response) => {
    response.header("X-Handler", handler).send(answer(handler));
  };
  if (name === "fastify") {
    app.register(require("@fastify/static"), { root: files, prefix: "/static/" });
  }
  app.get("/-/runs", reply("control"));
  for (const gated of GATED) app.route({ method: ["GET", "POST"], url: gated, handler: reply("gated") });
  app.get("/api/v1/crm/help/*", reply("open"));
  app.get("/api/v1/crm/files/*", reply("gated"));
  app.get("/api/v1/network/*", reply("core"));
  app.setNotFoundHandler(reply("other"));
  await app.listen({ port, host: "127.0.0.1" });
};

const lenient = {
  caseSensitive: false,
  ignoreTrailingSlash: true,
  ignoreDuplicateSlashes: true,
  useSemicolonDelimiter: true,
};

const hono = async (port) => {
  const app = new (require("hono").Hono)();
  const reply = (handler) => (context) => context.json(answer(handler), 200, { "X-Handler": handler });
  app.get("/-/runs", reply("control"));
  for (const gated of GATED) app.on(["GET", "POST"], gated, reply("gated"));
  app.get("/api/v1/crm/help/*", reply("open"));
  app.get("/api/v1/crm/files/*", reply("gated"));
  app.get("/api/v1/network/*", reply("core"));
  const { serveStatic } = require("@hono/node-server/serve-static");
  const relative = path.relative(process.cwd(), files);
  app.use("/static/*", serveStatic({ root: relative, rewriteRequestPath: (p) => p.replace(/^\/static/, "") }));
  app.all("*", reply("other"));
  require("@hono/node-server").serve({ fetch: app.fetch, port, hostname: "127.0.0.1" });
};

const koa = async (port) => {
  const app = new (require("koa"))();
  const Router = require("@koa/router").Router ?? require("@koa/router");
  const router = new Router();
  const reply = (handler) => (context) => {
    context.set("X-Handler", handler);
    context.body = answer(handler);
  };
  router.get("/-/runs", reply("control"));
  for (const gated of GATED) router.all(gated, reply("gated"));
  router.get("/api/v1/crm/help/*rest", reply("open"));
  router.get("/api/v1/crm/files/*rest", reply("gated"));
  router.get("/api/v1/network/*rest", reply("core"));
  app.use(router.routes());
  app.use(reply("other"));
  app.listen(port, "127.0.0.1");
};

const frameworks = {
  express5: express("express", "*rest"),
  express4: express("express4", "*"),
  fastify5: fastify("fastify", {}),
  fastify5_lenient: fastify("fastify", { routerOptions: lenient }),
  fastify4: fastify("fastify4", {}),
  hono,
  koa,
};
const [framework, port] = process.argv.slice(2);
frameworks[framework](Number(port));
