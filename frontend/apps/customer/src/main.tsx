import { LicenseProvider } from "@dotmac/licensing";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Link } from "wouter";
import { App } from "./App.js";
import { CallContext, caller } from "./api.js";
import { loadSettings } from "./settings.js";
import "./styles.css";

const root = createRoot(document.getElementById("root") as HTMLElement);
try {
  const settings = await loadSettings();
  root.render(
    <StrictMode>
      <LicenseProvider
        baseUrl={settings.baseUrl}
        webSocketUrl={settings.webSocketUrl}
        headers={settings.headers}
        token={settings.token}
        linkComponent={Link}
      >
        <CallContext.Provider value={caller(settings)}>
          <App tenants={settings.tenants ?? []} />
        </CallContext.Provider>
      </LicenseProvider>
    </StrictMode>,
  );
} catch (error) {
  root.render(<p role="alert">The portal can't be started: {String(error)}</p>);
}
