import { UsageLimitReached, useUsage } from "@dotmac/licensing";
import { useAction } from "./useAction.js";

/** What a portal has beside its modules: actions that ask the backend without asking the licence first. */
export function Dashboard() {
  const { used, limit } = useUsage("tickets");
  return (
    <>
      <h1>Dashboard</h1>
      <p>Two things that any page may do. The gate decides, and the page says what came of it.</p>
      <div className="actions">
        <Action label="Look up customers" method="GET" path="/api/v1/crm/customers" />
        <Action label="Open a ticket" method="POST" path="/api/v1/tickets" />
      </div>
      {limit !== null && (
        <p>
          Tickets this period: {used ?? "unknown"} of {limit}
        </p>
      )}
      <UsageLimitReached feature="tickets" />
    </>
  );
}

function Action({ label, method, path }: { readonly label: string; readonly method: string; readonly path: string }) {
  const { run, outcome, isPending } = useAction(method, path);
  return (
    <div className="action">
      <button type="button" onClick={isPending ? undefined : run} aria-disabled={isPending}>
        {label}
      </button>
      <output aria-label={`Outcome of: ${label}`} data-status={outcome?.status}>
        {outcome && `${method} ${path} → ${outcome.status ?? "no answer"}`}
      </output>
      {outcome?.text && <pre>{outcome.text}</pre>}
    </div>
  );
}
