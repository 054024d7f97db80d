// Data that is read from the webserver, and read again when the webserver reports a change.
import { useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { get } from './api.js';
import { onChanged } from './events.js';

/** Changes in quick succession cause one read. */
const GATHER_MS = 60;
/** Delay before a read is retried when the webserver or datastore did not respond. */
const AGAIN_MS = 3_000;
const isPassing = (error) => error.status === 0 || error.status >= 502;
/** Data read last, by path, so that a reopened page does not start empty. */
const known = new Map();

/** Deletes the cached data, because it belongs to the user who was signed in. */
export function forget() {
  known.clear();
}

/**
 * Reads `path` (null: nothing) now and whenever one of `collections` changes, or every `everyMs`.
 * Returns { data, error, reload }; `data` is kept while it is read again. `read` replaces the read function.
 */
export function useLive(path, collections, { everyMs = 0, read = get } = {}) {
  const [state, setState] = useState({ path, data: known.get(path), error: null });
  const reload = useRef(() => Promise.resolve());
  useEffect(() => {
    let isGone = false;
    let running = null;
    let isStale = false;
    let timer = 0;
    const once = async () => {
      isStale = false;
      let next;
      try {
        const data = await read(path);
        if (!isGone) known.set(path, data);
        next = { path, data, error: null };
      } catch (error) {
        if (error.status === 404) known.delete(path);
        next = { path, data: known.get(path), error };
        if (isPassing(error) && !isGone) {
          clearTimeout(timer);
          timer = setTimeout(load, AGAIN_MS);
        }
      }
      if (!isGone) setState(next);
    };
    // Resolves once the state at the time of the call, or a newer one, is shown.
    const load = () => {
      if (path === null || isGone) return Promise.resolve();
      isStale = true;
      running ??= (async () => {
        while (isStale && !isGone) await once();
        running = null;
      })();
      return running;
    };
    reload.current = load;
    setState({ path, data: known.get(path), error: null });
    load();
    const stop = onChanged((changed) => {
      if (changed !== null && !collections.some((name) => changed.has(name))) return;
      clearTimeout(timer);
      timer = setTimeout(load, GATHER_MS);
    });
    const interval = everyMs ? setInterval(() => document.hidden || load(), everyMs) : 0;
    return () => {
      isGone = true;
      stop();
      clearTimeout(timer);
      clearInterval(interval);
    };
  }, [path, everyMs]);
  // Between a new path and its effect, the state still belongs to the old path.
  const own = state.path === path ? state : { data: known.get(path), error: null };
  return { data: own.data, error: own.error, reload: () => reload.current() };
}

/**
 * For controls that take effect immediately: shows the chosen value until `action(chosen)` has finished, then `value`.
 * Returns [shown, choose].
 */
export function useImmediate(value, action) {
  const [chosen, setChosen] = useState(null);
  const choose = async (wanted) => {
    setChosen({ wanted });
    await action(wanted);
    setChosen(null);
  };
  return [chosen ? chosen.wanted : value, choose];
}
