import { FeatureGate, type NavigationEntry } from "@dotmac/licensing";
import { useEffect } from "react";
import { useAction } from "./useAction.js";

/** A module's page: what belongs to its feature is there only for those who have it. */
export function Module({ entry }: { readonly entry: NavigationEntry }) {
  const { label, feature, id } = entry;
  return (
    <>
      <h1>{label}</h1>
      {feature === undefined ? (
        <Content path={`/api/v1/${id}`} />
      ) : (
        <FeatureGate feature={feature} loading={<p role="status">Your licence is being looked up.</p>}>
          {() => <Content path={`/api/v1/${feature}`} />}
        </FeatureGate>
      )}
    </>
  );
}

function Content({ path }: { readonly path: string }) {
  const { run, outcome } = useAction("GET", path);
  useEffect(() => void run(), [run]);
  return (
    <section aria-label="Content" className="content" data-status={outcome?.status}>
      {outcome === null ? <p>Loading …</p> : <p>{`GET ${path} → ${outcome.status ?? "no answer"}`}</p>}
      {outcome?.text && <pre>{outcome.text}</pre>}
    </section>
  );
}
