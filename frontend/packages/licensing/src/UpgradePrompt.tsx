"use client";

import { type MouseEventHandler, type ReactElement, type ReactNode, useEffect, useId } from "react";
import { type Urgency, useProvided } from "./context.js";
import type { PaymentRequiredError } from "./errors.js";
import { useFeature, useLicenseState, useOffer, useUsage } from "./hooks.js";
import { listed } from "./labels.js";
import { endOf, type Standing } from "./state.js";
import type { DenialReason } from "./types.js";
import { isOwnPath } from "./urls.js";

/** How long the plans are waited for before it is said, in milliseconds: nobody wants to hear it twice. */
const SPEAKS_AFTER_MS = 500;

/** What a prompt says, for those who render it themselves. */
export interface PromptContent {
  readonly feature: string;
  /** What the feature is called. */
  readonly label: string;
  readonly reason: DenialReason;
  readonly title: string;
  readonly text: string;
  /** The plans that would do, cheapest first. */
  readonly plans: readonly string[];
  readonly upgradeUrl: string;
  /** To be called when the link is followed, so that it counts. */
  readonly onFollow: () => void;
}

export interface UpgradePromptProps {
  /** Empty where a 402 names none. */
  readonly feature: string;
  /** The 402 that it is about. Default: what the licence says. */
  readonly denial?: PaymentRequiredError | undefined;
  /** The level of the heading. Default: 2. */
  readonly headingLevel?: 1 | 2 | 3 | 4 | 5 | 6 | undefined;
  readonly className?: string | undefined;
  /** How screen readers say it. Default: `polite`. */
  readonly urgency?: Urgency | undefined;
  /** Renders a button that leaves it. */
  readonly onDismiss?: (() => void) | undefined;
  /** Renders it another way. */
  readonly children?: ((content: PromptContent) => ReactNode) | undefined;
}

/**
 * Says which feature is missing and why, which plans have it, and leads to where they are sold. That somebody follows the
 * link is reported to the proxy, wherever it leads.
 */
export function UpgradePrompt(props: UpgradePromptProps): ReactElement | null {
  const { feature, denial, headingLevel = 2, className = "dotmac-upgrade-prompt", urgency = "polite" } = props;
  const content = useContent(feature, denial);
  const provided = useProvided("UpgradePrompt");
  const { announce } = provided;
  const { title, text, upgradeUrl, onFollow } = content;
  // A router leads to the application's own pages only.
  const Link = isOwnPath(upgradeUrl) ? provided.Link : "a";
  const id = useId();
  // While nothing is known, nothing is missing.
  const isKnown = useLicenseState("UpgradePrompt", ({ status }) => status === "ready") || denial !== undefined;
  const pause = denial ? 0 : SPEAKS_AFTER_MS;
  useEffect(() => {
    if (!isKnown) return;
    let takeBack = () => {};
    const timer = setTimeout(() => {
      takeBack = announce(`${title}. ${text}`, urgency);
    }, pause);
    return () => {
      clearTimeout(timer);
      takeBack();
    };
  }, [announce, title, text, urgency, pause, isKnown]);
  if (!isKnown) return null;
  if (props.children) return <>{props.children(content)}</>;
  const Heading = `h${headingLevel}` as const;
  return (
    <article className={className} aria-labelledby={id} data-feature={feature} data-reason={content.reason}>
      <Heading id={id}>{title}</Heading>
      <p>{text}</p>
      <Link href={upgradeUrl} className="dotmac-upgrade-link" onClick={onFollow} onAuxClick={middle(onFollow)}>
        {feature === "" ? "See plans" : `See plans with ${content.label}`}
      </Link>
      {props.onDismiss && (
        <button type="button" onClick={props.onDismiss}>
          Not now
        </button>
      )}
    </article>
  );
}

function useContent(feature: string, denial: PaymentRequiredError | undefined): PromptContent {
  const { client, label } = useProvided("UpgradePrompt");
  const license = useLicenseState("UpgradePrompt", ({ license }) => license);
  const standing = useLicenseState("UpgradePrompt", ({ standing }) => standing);
  const hasFeature = useFeature(feature);
  const { limit } = useUsage(feature);
  const reason = denial?.reason ?? reasonOf(standing, hasFeature);
  const above = reason === "usage_limit_exceeded" ? (denial?.limit ?? limit) : null;
  const offer = useOffer(feature, above);
  const plans = denial ? denial.availableIn : offer.plans.map(({ name }) => name);
  const plan = denial?.plan ?? license?.planTier ?? null;
  const resetsAt = denial?.resetsAt ?? null;
  const name = feature === "" ? "This" : label(feature);
  const { title, text } = wording(reason, {
    name,
    plan: plan === null ? null : label(plan),
    plans: plans.map(label),
    limit: above,
    resetsAt,
    end: license && endOf(license),
    begin: license?.validFrom ?? null,
  });
  const upgradeUrl = denial?.upgradeUrl ?? offer.upgradeUrl;
  const onFollow = () => {
    if (feature !== "") client.clicked(feature);
  };
  return {
    feature,
    label: name,
    reason,
    title,
    text,
    plans,
    upgradeUrl,
    onFollow,
  };
}

/** Why the gate would refuse a request for the feature now. */
function reasonOf(standing: Standing, hasFeature: boolean): DenialReason {
  switch (standing) {
    case "none":
      return "no_license";
    case "ended":
      return "license_expired";
    case "not_begun":
      return "license_not_yet_valid";
    case "valid":
      return hasFeature ? "usage_limit_exceeded" : "feature_not_in_plan";
  }
}

interface Facts {
  readonly name: string;
  readonly plan: string | null;
  readonly plans: readonly string[];
  readonly limit: number | null;
  readonly resetsAt: Date | null;
  readonly end: number | null;
  readonly begin: string | null;
}

function wording(reason: DenialReason, facts: Facts): { title: string; text: string } {
  const { name, plan, plans, limit } = facts;
  const offer = plans.length === 0 ? "" : ` It is included in ${listed(plans)}.`;
  switch (reason) {
    case "feature_not_in_plan":
      return {
        title: `${name} is not in your plan`,
        text: `${plan === null ? "Your plan" : `The plan ${plan}`} does not include ${name}.${offer}`,
      };
    case "no_license":
      return {
        title: `${name} needs a licence`,
        text: `There is no licence for your organisation yet.${offer}`,
      };
    case "license_expired":
      return {
        title: "Your licence has ended",
        text: `${facts.end === null ? "It has ended" : `It ended on ${day(facts.end)}`}; ${name} needs a valid one.`,
      };
    case "license_not_yet_valid":
      return {
        title: "Your licence has not begun",
        text: facts.begin === null ? `${name} comes with it.` : `It begins on ${day(Date.parse(facts.begin))}.`,
      };
    case "usage_limit_exceeded": {
      const much = limit === null ? "The limit" : `The limit of ${limit}`;
      const until = facts.resetsAt === null ? "" : ` Counting begins anew on ${day(facts.resetsAt.getTime())}.`;
      const more = plans.length === 0 ? "" : ` There is more in ${listed(plans)}.`;
      return {
        title: `${name} is used up`,
        text: `${much} for ${name} is used up.${until}${more}`,
      };
    }
  }
}

/** A day in UTC, by which licences and windows are counted: 2026-12-01. */
function day(time: number): string {
  return new Date(time).toISOString().slice(0, 10);
}

/** The middle button follows a link too. */
function middle(follow: () => void): MouseEventHandler {
  return (event) => {
    if (event.button === 1) follow();
  };
}
