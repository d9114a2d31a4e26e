/**
 * The proxy's clock, by which licences end: that of a visitor's machine may be hours away from it.
 *
 * `Date` (RFC 9110 section 6.6.1) tells it to the second, and each answer narrows down how far apart the two are.
 */
export class ServerClock {
  /** How far the proxy's clock is ahead of ours, in milliseconds, at the least and at the most. */
  #ahead: readonly [number, number] | null = null;

  /** An answer to a request that was sent and answered at these moments of our clock came with this `Date`. */
  heard(date: string | null, sentAt: number, answeredAt: number): void {
    const told = date === null ? Number.NaN : Date.parse(date);
    if (Number.isNaN(told)) return;
    // It was written between the two moments, and cut down to a whole second.
    const [least, most] = [told - answeredAt, told + 1000 - sentAt];
    const known = this.#ahead;
    const both = known && ([Math.max(known[0], least), Math.min(known[1], most)] as const);
    // Where they contradict each other, one of the clocks was set: only the latest counts.
    this.#ahead = both && both[0] <= both[1] ? both : [least, most];
  }

  /** Whether anything was heard of it. */
  get isKnown(): boolean {
    return this.#ahead !== null;
  }

  /** Now, by the proxy's clock as far as it is known; by our own until then. */
  now(): number {
    return Date.now() + (this.#ahead === null ? 0 : (this.#ahead[0] + this.#ahead[1]) / 2);
  }
}
