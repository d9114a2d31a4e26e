/**
 * The proxy's clock, by which licences end: that of a visitor's machine may be hours away from it.
 *
 * `Date` (RFC 9110 section 6.6.1) tells it to the second, and each answer narrows down how far apart the two are. The earliest
 * time that it may be is what counts: a gate that is still open is not closed before its time, and one that has closed says so.
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

  /** The earliest that it may have been by the proxy's clock at a moment of ours; our own time as long as nothing is known. */
  at(ours: number): number {
    return ours + (this.#ahead?.[0] ?? 0);
  }

  /** The earliest that it may be now. */
  now(): number {
    return this.at(Date.now());
  }
}
