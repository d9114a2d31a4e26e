"use client";

import { useEffect, useRef } from "react";
import { useProvided } from "./context.js";
import type { PaymentRequiredError } from "./errors.js";
import { useLicenseState } from "./hooks.js";
import { UpgradePrompt } from "./UpgradePrompt.js";

/**
 * The prompt for the latest call that was refused for want of a licence, as `paymentRequired` has reported it. Put it once
 * into the page. It goes when somebody dismisses it, by its button or Escape, and when an upgrade has remedied it.
 */
export function PaymentRequiredPrompt({ className = "dotmac-payment-required" }: { readonly className?: string }) {
  const denial = useLicenseState("PaymentRequiredPrompt", ({ denial }) => denial);
  return denial === null ? null : <Denied key={denial.requestId} denial={denial} className={className} />;
}

function Denied({ denial, className }: { readonly denial: PaymentRequiredError; readonly className: string }) {
  const { client } = useProvided("PaymentRequiredPrompt");
  const own = useRef<HTMLElement>(null);
  // The focus stays where somebody is working, and comes back there if it was within the prompt when that goes.
  const focused = useRef<Element | null>(null);
  useEffect(() => {
    focused.current = document.activeElement;
    const dismiss = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !event.defaultPrevented) client.dismiss();
    };
    document.addEventListener("keydown", dismiss);
    return () => document.removeEventListener("keydown", dismiss);
  }, [client]);
  const dismiss = () => {
    if (focused.current instanceof HTMLElement && own.current?.contains(document.activeElement))
      focused.current.focus();
    client.dismiss();
  };
  return (
    <aside ref={own} className={className} aria-label="Licence">
      <UpgradePrompt feature={denial.feature ?? ""} denial={denial} urgency="assertive" onDismiss={dismiss} />
    </aside>
  );
}
