"use client";

import { useEffect, useLayoutEffect, useRef } from "react";
import { useProvided } from "./context.js";
import type { PaymentRequiredError } from "./errors.js";
import { useLicenseState } from "./hooks.js";
import { UpgradePrompt } from "./UpgradePrompt.js";

/**
 * The prompt for the latest call that was refused for want of a licence, as `paymentRequired` has reported it. Put it once
 * into the page. It goes when somebody dismisses it, by its button or Escape, and when an upgrade has remedied it.
 */
export function PaymentRequiredPrompt({
  className = "dotmac-payment-required",
}: {
  readonly className?: string | undefined;
}) {
  const denial = useLicenseState("PaymentRequiredPrompt", ({ denial }) => denial);
  // Who is denied the same again keeps the prompt, and what has the focus in it.
  return denial === null ? null : (
    <Denied key={`${denial.reason} ${denial.feature}`} denial={denial} className={className} />
  );
}

function Denied({ denial, className }: { readonly denial: PaymentRequiredError; readonly className: string }) {
  const { client } = useProvided("PaymentRequiredPrompt");
  const own = useRef<HTMLElement>(null);
  useEffect(() => {
    const dismiss = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !event.defaultPrevented && !event.isComposing) client.dismiss();
    };
    document.addEventListener("keydown", dismiss);
    return () => document.removeEventListener("keydown", dismiss);
  }, [client]);
  // The focus stays where somebody is working. If it is within the prompt when that goes, by whatever way, it goes back there.
  useLayoutEffect(() => {
    const before = document.activeElement;
    const prompt = own.current;
    return () => {
      if (before instanceof HTMLElement && prompt?.contains(document.activeElement)) before.focus();
    };
  }, []);
  return (
    <aside ref={own} className={className} aria-label="Licence">
      <UpgradePrompt feature={denial.feature ?? ""} denial={denial} urgency="assertive" onDismiss={client.dismiss} />
    </aside>
  );
}
