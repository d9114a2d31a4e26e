/** A WebSocket that comes back: one connection at a time, with a pause after each that failed. */

import { backoff } from "./backoff.js";

/** How long a connection may take to open. */
const OPEN_WITHIN_MS = 10_000;

/** How long a connection must have held for the next one to be tried without a pause for those that failed before. */
const STEADY_AFTER_MS = 10_000;

/** How long an attempt is left alone although there is reason to try again. */
const PATIENCE_MS = 2000;

/** How often something is said on an open connection: where the other end is gone, the network says so. */
const ALIVE_EVERY_MS = 45_000;

/** What a connection is opened with. Asked anew for each, since tokens expire. */
export interface Dial {
  readonly url: string;
  readonly protocols: string[];
}

export interface SocketHandlers {
  /** A connection is open. `again`: it is not the first, so changes may have been missed. */
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
  /** Which attempt is under way: what belongs to an earlier one is of no interest. */
  #attempt = 0;
  #failed = 0;
  #hasBeenOpen = false;
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
    this.#drop();
    const attempt = this.#attempt;
    this.#dialedAt = Date.now();
    this.#timer = setTimeout(() => this.#gone(attempt), OPEN_WITHIN_MS);
    try {
      const { url, protocols } = await this.#dial();
      if (attempt !== this.#attempt) return;
      const socket = new (this.#construct())(url, protocols);
      this.#socket = socket;
      socket.onopen = () => this.#open(attempt);
      socket.onmessage = (event) => {
        if (attempt === this.#attempt) this.#handlers.message(event.data);
      };
      // An error is followed by a close, of which there is more to tell.
      socket.onclose = () => this.#gone(attempt);
    } catch {
      this.#gone(attempt);
    }
  }

  /** Connect now if there is no connection; if there is, see whether it still leads anywhere. */
  wake(): void {
    if (this.#openedAt !== null) this.#say();
    else if (this.#dialedAt === null || Date.now() - this.#dialedAt >= PATIENCE_MS) void this.connect();
  }

  /** Close it for good. */
  close(): void {
    this.#drop();
  }

  #open(attempt: number): void {
    if (attempt !== this.#attempt) return;
    clearTimeout(this.#timer);
    this.#dialedAt = null;
    this.#openedAt = Date.now();
    this.#alive = setInterval(() => this.#say(), ALIVE_EVERY_MS);
    const again = this.#hasBeenOpen || this.#failed > 0;
    this.#hasBeenOpen = true;
    this.#handlers.opened(again);
  }

  #gone(attempt: number): void {
    if (attempt !== this.#attempt) return;
    const wasOpen = this.#openedAt !== null;
    const wasSteady = this.#openedAt !== null && Date.now() - this.#openedAt >= STEADY_AFTER_MS;
    this.#drop();
    if (wasSteady) this.#failed = 0;
    this.#timer = setTimeout(() => void this.connect(), backoff(this.#failed));
    this.#failed += 1;
    this.#handlers.lost(wasOpen);
  }

  /** The proxy passes over what it is told here. */
  #say(): void {
    try {
      this.#socket?.send('{"type":"alive"}');
    } catch {
      // It is closing, and tells so itself.
    }
  }

  #drop(): void {
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
}
