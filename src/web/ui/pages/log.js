// The live log.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { get } from '../lib/api.js';
import { Entry } from '../lib/entries.js';
import { standing } from '../lib/events.js';
import { useLive } from '../lib/live.js';
import { listen } from '../lib/stream.js';
import { Choice, Page } from '../lib/ui.js';
import { useWatched } from '../lib/value.js';

const READ_AT_ONCE = 100;
const KEPT_MAX = 1000;
const AGAIN_MS = 3_000;

const query = (collection) => (collection ? `&collection=${encodeURIComponent(collection)}` : '');

/** Merges two lists of entries, newest first, without duplicates. */
function merged(left, right) {
  const all = new Map([...left, ...right].map((entry) => [entry.Seq, entry]));
  return [...all.values()].sort((one, other) => other.Seq - one.Seq).slice(0, KEPT_MAX);
}

function useLog(collection) {
  const [entries, setEntries] = useState([]);
  const [error, setError] = useState(null);
  const [isRead, setRead] = useState(false);
  const [isEnd, setEnd] = useState(false);
  const isGone = useRef(false);

  const read = async (end) => {
    try {
      const range = end === undefined ? '' : `&end=${end}`;
      const found = await get(`/api/log?limit=${READ_AT_ONCE}${range}${query(collection)}`);
      if (isGone.current) return;
      setError(null);
      setEntries((before) => merged(before, found));
      // With a filter, a range may contain few or no matching entries, so only the start of the log ends the list.
      setEnd(end !== undefined && (end <= READ_AT_ONCE || (found.length === 0 && !collection)));
    } catch (failure) {
      if (!isGone.current) setError(failure);
    }
    if (!isGone.current) setRead(true);
  };
  useEffect(() => {
    isGone.current = false;
    // Open the stream before reading, so that entries between reading and listening are not missed.
    const end = listen(
      `/api/log/live?${query(collection).slice(1)}`,
      {
        entry: (entry) => setEntries((before) => merged([entry], before)),
        gap: () => read(),
      },
      { onOpen: () => read() },
    );
    return () => {
      isGone.current = true;
      end();
    };
  }, []);
  // Older entries come from the datastore; retry until it responds.
  useEffect(() => {
    if (error?.status !== 503 && error?.status !== 0) return undefined;
    const timer = setTimeout(() => read(), AGAIN_MS);
    return () => clearTimeout(timer);
  }, [error]);
  return { entries, error, isRead, isEnd, read };
}

function Entries({ collection, isOpen }) {
  const { Connected } = useWatched(standing);
  const { entries, error, isRead, isEnd, read } = useLog(collection);
  const [held, setHeld] = useState(null);
  const [reached, setReached] = useState(null);
  const shown = held ?? entries;
  const waiting = held ? entries.filter((entry) => entry.Seq > (held[0]?.Seq ?? 0)).length : 0;
  const oldest = Math.min(reached ?? Infinity, entries.at(-1)?.Seq ?? Infinity);
  const older = async () => {
    // A range without entries of the selected collection must not be read again.
    const end = Math.max(1, oldest - 1);
    setReached(Math.max(1, end - READ_AT_ONCE + 1));
    if (held) setHeld(null);
    await read(end);
  };
  return html`
    <div class="log-bar">
      <button data-test="pause" aria-pressed=${String(held !== null)} onClick=${() => setHeld(held ? null : entries)}>${held ? 'Resume' : 'Pause'}</button>
      <span class="faint" aria-live="polite">
        ${held ? `Paused, ${waiting} new ${waiting === 1 ? 'entry' : 'entries'}.` : 'New entries appear automatically.'}
      </span>
    </div>
    ${error && html`<p class="failure" role="alert" data-test="failure">
      ${error.status === 503 && !Connected ? 'The datastore is unreachable, so older entries cannot be loaded. Retrying automatically; new entries of this webserver still appear here.' : error.message}
    </p>`}
    ${shown.length === 0 && isRead && !error && html`<div class="empty" data-test="empty">${collection ? `The latest entries contain no changes of ${collection}. Load older entries to find some.` : 'The log is empty.'}</div>`}
    <ol class="entries" data-test="entries">${shown.map((entry) => html`<${Entry} key=${entry.Seq} entry=${entry} isOpen=${isOpen} />`)}</ol>
    ${isRead && !isEnd && oldest > 1 && html`<button data-test="older" onClick=${older}>Load older entries</button>`}
  `;
}

export function Log() {
  const kinds = useLive('/api/log/collections', []).data ?? [];
  const [collection, setCollection] = useState('');
  const isOpen = (name) => kinds.some((kind) => kind.Collection === name && kind.Exposure === 'Open');
  const options = [['', 'All collections'], ...kinds.map((kind) => [kind.Collection, kind.Collection])];
  const holds = kinds.find((kind) => kind.Collection === collection)?.Holds ?? 'All entries in commit order.';
  return html`<${Page} title="Live log">
    <div class="filters">
      <${Choice} name="collection" label="Collection" value=${collection} options=${options} onValue=${setCollection} hint=${holds} />
    </div>
    <${Entries} key=${collection} collection=${collection} isOpen=${isOpen} />
  <//>`;
}
