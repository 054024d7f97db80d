// Observable values, which hold the state that components share.
import { useEffect, useState } from '../vendor/htm-preact-standalone.module.js';

export class Watched {
  #value;
  #watchers = new Set();

  constructor(value) {
    this.#value = value;
  }

  get() {
    return this.#value;
  }

  set(value) {
    this.#value = value;
    for (const watcher of [...this.#watchers]) watcher(value);
  }

  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }
}

/** Returns the current value and renders the component again when it changes. */
export function useWatched(watched) {
  const [, draw] = useState(0);
  useEffect(() => {
    const before = watched.get();
    const stop = watched.watch(() => draw((n) => n + 1));
    // The value may have changed between rendering and subscribing.
    if (watched.get() !== before) draw((n) => n + 1);
    return stop;
  }, [watched]);
  return watched.get();
}
