/**
 * Tabs of one origin tell each other that there is news, never what it is: each asks for itself, as whoever is signed in
 * there.
 */
export class Tabs {
  readonly #channel: BroadcastChannel | null;
  readonly #topic: string;

  /** `heard`: another tab with the same `topic` knows this revision; `doubtful`: it has reason to ask again. */
  constructor(topic: string, heard: (revision: number, doubtful: boolean) => void) {
    this.#topic = topic;
    this.#channel = open();
    if (this.#channel === null) return;
    this.#channel.onmessage = ({ data }) => {
      if (data?.topic === topic && typeof data.revision === "number") heard(data.revision, data.doubtful === true);
    };
  }

  tell(revision: number, doubtful: boolean): void {
    this.#channel?.postMessage({ topic: this.#topic, revision, doubtful });
  }

  close(): void {
    this.#channel?.close();
  }
}

/** null: there are none here, or not for this page, as in a frame that may store nothing. */
function open(): BroadcastChannel | null {
  try {
    return new BroadcastChannel("dotmac-license");
  } catch {
    return null;
  }
}
