// Drafts of objects that other users may change at the same time. Edits are never lost.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { Differences } from './differences.js';
import { Dialog } from './dialog.js';

const same = (left, right) => JSON.stringify(left) === JSON.stringify(right);

/** Unsaved drafts of pages that the user left, by the path of their object. */
const left = new Map();

/** Deletes all drafts, because they belong to the user who was signed in. */
export function forgetDrafts() {
  left.clear();
}

/** Returns the draft's state after the object was read again. */
function merged(state, { fields, etag }) {
  const fresh = { base: fields, mine: fields, etag, theirs: null, kept: state?.kept ?? null };
  if (state === null || same(state.mine, state.base) || same(fields, state.mine)) return fresh;
  // Only the version is new, for example because the datastore has committed the change.
  if (same(fields, state.base)) return { ...state, etag, theirs: null };
  return { ...state, theirs: { fields, etag } };
}

/**
 * Keeps a draft of the object at `path`. `loaded` is { fields, etag }, or undefined until the object is read. Returns null
 * until then, else { fields, base, isDirty, set(changes), save(send), bar, discard }. `send(fields, base, etag)` stores the
 * object and resolves to its current { fields, etag }; `again()` reads it and resolves to the same. Place `bar` above the
 * form and `discard` next to its buttons.
 */
export function useDraft(path, loaded, again) {
  const [state, setState] = useState(left.get(path) ?? null);
  const isDirty = state !== null && !same(state.mine, state.base);
  useEffect(() => {
    if (loaded) setState((before) => merged(before, loaded));
  }, [loaded?.etag, loaded && JSON.stringify(loaded.fields)]);
  useEffect(() => {
    if (isDirty) left.set(path, state);
    else left.delete(path);
  }, [path, state]);
  useEffect(() => {
    if (!isDirty) return undefined;
    const warn = (event) => event.preventDefault();
    addEventListener('beforeunload', warn);
    return () => removeEventListener('beforeunload', warn);
  }, [isDirty]);
  if (state === null) return null;

  const store = async (from, send) => {
    const stored = await send(from.mine, from.base, from.etag);
    setState({ base: stored.fields, mine: stored.fields, etag: stored.etag, theirs: null, kept: null });
  };
  const save = async (send) => {
    try {
      await store(state, send);
    } catch (error) {
      if (!error.isConflict) throw error;
      const newer = merged(state, await again());
      setState(newer);
      if (newer.theirs) throw new Error('Another user changed this. Your edits are kept; choose a version above.');
      // No other user changed it: the draft was based on an older version with the same content.
      if (newer.etag === state.etag) throw error;
      await store(newer, send);
    }
  };
  return {
    fields: state.mine,
    base: state.base,
    isDirty,
    set: (changes) => setState((before) => ({ ...before, mine: { ...before.mine, ...changes } })),
    save,
    discard:
      isDirty && html`<button type="button" data-test="discard" onClick=${() => setState({ ...state, mine: state.base })}>Discard changes</button>`,
    bar: html`<${Bar} state=${state} setState=${setState} />`,
  };
}

const asText = (fields) =>
  Object.entries(fields)
    .map(([name, value]) => `${name}: ${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join('\n');

function Bar({ state, setState }) {
  const [isCompared, setCompared] = useState(false);
  const { mine, theirs, kept } = state;
  if (kept) {
    return html`<div class="note" role="status">
      <p>You loaded the version of another user. Your edits are kept.</p>
      <div class="actions">
        <button type="button" data-test="bring-back" onClick=${() => setState({ ...state, mine: kept, kept: null })}>Restore my edits</button>
        <button type="button" class="plain" onClick=${() => setState({ ...state, kept: null })}>Discard my edits</button>
      </div>
    </div>`;
  }
  if (!theirs) return null;
  const fresh = { base: theirs.fields, etag: theirs.etag, theirs: null };
  return html`<div class="note note-warn" role="alert" data-test="conflict">
    <p>Another user changed this. Your edits are kept.</p>
    <div class="actions">
      <button type="button" onClick=${() => setCompared(true)}>Compare</button>
      <button type="button" data-test="take-theirs" onClick=${() => setState({ ...fresh, mine: theirs.fields, kept: mine })}>Load their version</button>
      <button type="button" data-test="keep-mine" onClick=${() => setState({ ...fresh, mine, kept: null })}>Keep my version</button>
    </div>
    ${isCompared &&
    html`<${Dialog} title="Compare their version with yours" wide=${true} onClose=${() => setCompared(false)}>
      <${Differences} before=${asText(theirs.fields)} after=${asText(mine)} />
    <//>`}
  </div>`;
}
