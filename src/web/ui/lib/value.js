// A value that components can watch: the little shared state that there is lives in a few of these.
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

/** The present value; the component is drawn again when it changes. */
export function useWatched(watched) {
  const [, draw] = useState(0);
  useEffect(() => {
    const before = watched.get();
    const stop = watched.watch(() => draw((n) => n + 1));
    // It may have changed between drawing and watching.
    if (watched.get() !== before) draw((n) => n + 1);
    return stop;
  }, [watched]);
  return watched.get();
}
