// Events from the webserver: changed collections, and the state of its connection to the datastore.
import { listen } from './stream.js';
import { Watched } from './value.js';

const FINE = { Reachable: true, Connected: true, Outbox: 0, Rejected: 0 };

/** Connection state: `Reachable` between this browser and the webserver, `Connected` between webserver and datastore. */
export const standing = new Watched(FINE);

const listeners = new Set();
let end = null;

/** Calls `action` with the set of changed collections, or with null when any collection may have changed. */
export function onChanged(action) {
  listeners.add(action);
  return () => listeners.delete(action);
}

function notify(collections) {
  for (const listener of [...listeners]) listener(collections);
}

/** Starts to listen. */
export function start() {
  stop();
  const events = {
    status: (status) => standing.set({ Reachable: true, ...status }),
    changed: ({ Collections }) => notify(new Set(Collections)),
  };
  end = listen('/api/events', events, {
    onOpen: (isAgain) => {
      standing.set({ ...standing.get(), Reachable: true });
      if (isAgain) notify(null);
    },
    onLost: () => standing.set({ ...standing.get(), Reachable: false }),
  });
}

export function stop() {
  end?.();
  end = null;
  standing.set(FINE);
}
