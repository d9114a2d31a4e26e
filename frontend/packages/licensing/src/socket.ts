/** A WebSocket that comes back: one connection at a time, with a pause after each that failed. */

import { backoff } from "./backoff.js";

/** How long a connection may take to open. */
const OPEN_WITHIN_MS = 10_000;

/** How long an attempt is left alone although there is reason to try again. */
const PATIENCE_MS = 2000;

/**
 * How long a connection must have held for the next one to be tried without a pause for those that failed before: more than it
 * may take to tell anything, since one that tells nothing was no success.
 */
const STEADY_AFTER_MS = 15_000;

/** How often something is said on an open connection: where the other end is gone, the network says so. */
const ALIVE_EVERY_MS = 45_000;

/** The code with which the other end asks for a longer pause (RFC 6455 section 7.4, the registry's "Try Again Later"). */
const TRY_AGAIN_LATER = 1013;
/** How many failures that counts for. */
const LATER = 3;

/** What a connection is opened with. Asked anew for each, since tokens expire. */
export interface Dial {
  readonly url: string;
  readonly protocols: string[];
}

export interface SocketHandlers {
  /** A connection is open. `again`: another was before, or could not be opened, so changes may have been missed. */
  opened(again: boolean): void;
  /** A connection that was open is gone, or one could not be opened. */
  lost(wasOpen: boolean): void;
  message(data: unknown): void;
}

export class ReconnectingSocket {
  readonly #dial: () => Promise<Dial>;
  readonly #construct: () => typeof WebSocket;
  readonly #handlers: SocketHandlers;
  #socket: WebSocket | null = null;
  /** Which attempt is under way: one that was given up while it waited for a token opens nothing. */
  #attempt = 0;
  #failed = 0;
  #isFirst = true;
  #openedAt: number | null = null;
  /** When the attempt that is under way began; null: there is a connection, or a pause. */
  #dialedAt: number | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #alive: ReturnType<typeof setInterval> | undefined;

  constructor(dial: () => Promise<Dial>, construct: () => typeof WebSocket, handlers: SocketHandlers) {
    this.#dial = dial;
    this.#construct = construct;
    this.#handlers = handlers;
  }

  get isOpen(): boolean {
    return this.#openedAt !== null;
  }

  /** Connect now, whatever is under way. */
  async connect(): Promise<void> {
    this.close();
    const attempt = this.#attempt;
    this.#dialedAt = Date.now();
    this.#timer = setTimeout(() => this.retry(), OPEN_WITHIN_MS);
    try {
      const { url, protocols } = await this.#dial();
      if (attempt !== this.#attempt) return;
      const socket = new (this.#construct())(url, protocols);
      this.#socket = socket;
      socket.onopen = () => this.#opened();
      socket.onmessage = ({ data }) => this.#handlers.message(data);
      // An error is followed by a close, of which there is more to tell.
      socket.onclose = ({ code }) => this.retry(code);
    } catch {
      if (attempt === this.#attempt) this.retry();
    }
  }

  /** Connect now if there is no connection; if there is, see whether it still leads anywhere. */
  wake(): void {
    if (this.#openedAt !== null) this.#say();
    else if (this.#dialedAt === null || Math.abs(Date.now() - this.#dialedAt) >= PATIENCE_MS) void this.connect();
  }

  /** Leave the connection or the attempt that there is, and connect after a pause. `code`: it was closed with that. */
  retry(code?: number): void {
    const wasOpen = this.#openedAt !== null;
    const wasSteady = this.#openedAt !== null && Date.now() - this.#openedAt >= STEADY_AFTER_MS;
    this.close();
    if (wasSteady) this.#failed = 0;
    if (code === TRY_AGAIN_LATER) this.#failed = Math.max(this.#failed, LATER);
    this.#timer = setTimeout(() => void this.connect(), backoff(this.#failed));
    this.#failed += 1;
    this.#isFirst = false;
    this.#handlers.lost(wasOpen);
  }

  /** Close it, and don't come back before somebody says so. */
  close(): void {
    this.#attempt += 1;
    this.#dialedAt = this.#openedAt = null;
    clearTimeout(this.#timer);
    clearInterval(this.#alive);
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  #opened(): void {
    clearTimeout(this.#timer);
    this.#dialedAt = null;
    this.#openedAt = Date.now();
    this.#alive = setInterval(() => this.#say(), ALIVE_EVERY_MS);
    const again = !this.#isFirst;
    this.#isFirst = false;
    this.#handlers.opened(again);
  }

  /** The proxy passes over what it is told here. */
  #say(): void {
    try {
      this.#socket?.send('{"type":"alive"}');
    } catch {
      // It is closing, and tells so itself.
    }
  }
}
