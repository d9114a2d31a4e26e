const FIRST_MS = 500;
const LONGEST_MS = 30_000;

/**
 * How long to wait before another attempt, when so many have failed in a row: twice as long each time, up to half a minute,
 * and between half of it and all of it, so that thousands of tabs don't come back in one moment.
 */
export function backoff(failed: number, random: () => number = Math.random): number {
  const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failed, 10));
  return longest * (0.5 + random() / 2);
}
