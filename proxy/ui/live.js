/* The live stream: moments as they come, while the page is seen; it comes back by itself after it broke. */

import { ApiError, events } from "./api.js";

const LONGEST_PAUSE_MS = 10_000;
const FIRST_PAUSE_MS = 500;

export class Live extends EventTarget {
  #abort = null;
  #pause = FIRST_PAUSE_MS;
  #timer = 0;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
  }

  start() {
    if (this.#abort || document.hidden) return;
    clearTimeout(this.#timer);
    this.#abort = new AbortController();
    this.#follow(this.#abort);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
  }

  /** With another key. */
  restart() {
    this.stop();
    this.#pause = FIRST_PAUSE_MS;
    this.start();
  }

  async #follow(abort) {
    this.#tell("connecting");
    let keyNeeded = false;
    try {
      for await (const moment of events("/v1/cache/live?interval_s=1&nodes=200", { signal: abort.signal })) {
        this.#pause = FIRST_PAUSE_MS;
        this.#tell("live");
        this.dispatchEvent(new CustomEvent("moment", { detail: moment }));
      }
    } catch (error) {
      keyNeeded = error instanceof ApiError && error.status === 401;
    }
    if (this.#abort !== abort) return;
    this.#abort = null;
    this.#tell(keyNeeded ? "needs a key" : "reconnecting");
    if (keyNeeded) return;
    this.#timer = setTimeout(() => this.start(), this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE_MS);
  }

  #tell(state) {
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}
