import { PaymentRequiredError } from "@dotmac/licensing";
import { useCallback, useState } from "react";
import { useCall } from "./api.js";

/** What a call came to, refusals and failures included. */
export interface Outcome {
  /** null: there was no answer. */
  readonly status: number | null;
  readonly text: string;
}

/** A call of the backend that somebody makes by a button, or that a page makes when it opens. */
export function useAction(method: string, path: string) {
  const call = useCall();
  const [outcome, setOutcome] = useState<Outcome | null>(null);
  const [isPending, setPending] = useState(false);
  const run = useCallback(async () => {
    setPending(true);
    try {
      setOutcome(await call(method, path));
    } catch (error) {
      setOutcome({ status: error instanceof PaymentRequiredError ? error.status : null, text: String(error) });
    } finally {
      setPending(false);
    }
  }, [call, method, path]);
  return { run, outcome, isPending };
}
