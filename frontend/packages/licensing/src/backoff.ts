const FIRST_MS = 1000;
const LONGEST_MS = 30_000;

/** Less is no pause. */
const LEAST_MS = 100;

/**
 * How long to wait before another attempt, when so many have failed in a row: anything up to a second, then two, four … half a
 * minute, so that thousands of tabs don't come back in one moment ("full jitter").
 */
export function backoff(failed: number, random: () => number = Math.random): number {
  const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failed, 10));
  return LEAST_MS + random() * (longest - LEAST_MS);
}
