import { NAVIGATION, useLicense, useOffers, useUpgrade } from "@dotmac/licensing";
import { useRef, useState } from "react";
import { Link, useSearch } from "wouter";

/** Where a denial's link leads: the plans, and a button for each that can be bought. */
export function Upgrade() {
  const feature = new URLSearchParams(useSearch()).get("feature");
  const { license } = useLicense();
  const offers = useOffers();
  const { upgrade, isPending, error } = useUpgrade();
  const [done, setDone] = useState("");
  const said = useRef<HTMLParagraphElement>(null);
  const place = offers?.plans.findIndex(({ name }) => name === license?.planTier) ?? -1;
  const buy = async (plan: string) => {
    setDone("");
    const result = await upgrade(plan);
    if (result === null) return;
    setDone(result.status === "applied" ? `Your plan is ${plan} now.` : `${plan} was asked for.`);
    // The button that was pressed is gone.
    said.current?.focus();
  };
  const module = NAVIGATION.find((entry) => feature !== null && entry.feature === feature);
  return (
    <>
      <h1>Plans{module && ` with ${module.label}`}</h1>
      {offers === null && <p role="status">The plans are being looked up.</p>}
      <ul className="plans">
        {offers?.plans.map((plan, index) => (
          <li key={plan.name} data-plan={plan.name} className={feature && plan.features.includes(feature) ? "has" : ""}>
            <h2>{plan.name}</h2>
            <p>{plan.features.join(", ")}</p>
            {Object.entries(plan.limits).map(([limited, limit]) => (
              <p key={limited}>
                at most {limit} {limited} a period
              </p>
            ))}
            {module?.feature && plan.features.includes(module.feature) && <p>It has {module.label}.</p>}
            {plan.name === license?.planTier && <p>This is your plan.</p>}
            {offers.upgrade && (index > place || (offers.upgrade.downgrade && index !== place)) && (
              <button type="button" aria-disabled={isPending} onClick={() => isPending || buy(plan.name)}>
                Change to {plan.name}
              </button>
            )}
          </li>
        ))}
      </ul>
      <p ref={said} role="status" tabIndex={-1}>
        {done}
      </p>
      {error && <p role="alert">{error.message}</p>}
      {module && <Link href={module.path}>Go to {module.label}</Link>}
    </>
  );
}
