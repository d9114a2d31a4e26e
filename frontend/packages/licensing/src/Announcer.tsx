"use client";

import { type CSSProperties, type ReactElement, useCallback, useState } from "react";
import type { Urgency } from "./context.js";

/** What screen readers are to say: regions are there before they have a text, or it is not said (ARIA live regions). */
export interface Spoken {
  readonly id: number;
  readonly text: string;
  readonly urgency: Urgency;
}

const HIDDEN: CSSProperties = {
  position: "absolute",
  width: 1,
  height: 1,
  margin: -1,
  padding: 0,
  overflow: "hidden",
  clipPath: "inset(50%)",
  whiteSpace: "nowrap",
  border: 0,
};

let ids = 0;

/** The texts that are to be said, and the function that adds one. */
export function useAnnouncements() {
  const [spoken, setSpoken] = useState<readonly Spoken[]>([]);
  const announce = useCallback((text: string, urgency: Urgency) => {
    ids += 1;
    const id = ids;
    setSpoken((others) => [...others, { id, text, urgency }]);
    return () => setSpoken((others) => others.filter((other) => other.id !== id));
  }, []);
  return { announce, spoken };
}

export function Announcer({ spoken }: { readonly spoken: readonly Spoken[] }): ReactElement {
  // Several gates of one feature have one thing to say.
  const isFirst = ({ text, urgency }: Spoken, index: number) =>
    spoken.findIndex((other) => other.text === text && other.urgency === urgency) === index;
  const unique = spoken.filter(isFirst);
  const said = (urgency: Urgency) =>
    unique.filter((one) => one.urgency === urgency).map(({ id, text }) => <p key={id}>{text}</p>);
  return (
    <>
      <div role="status" aria-live="polite" style={HIDDEN}>
        {said("polite")}
      </div>
      <div role="alert" aria-live="assertive" style={HIDDEN}>
        {said("assertive")}
      </div>
    </>
  );
}
