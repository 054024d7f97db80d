// Short messages in a corner of the page, announced by screen readers.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Watched, useWatched } from './value.js';

const LIFE_MS = 5_000;
const LIFE_OF_ERRORS_MS = 12_000;

const toasts = new Watched([]);
let last = 0;

function drop(id) {
  toasts.set(toasts.get().filter((toast) => toast.id !== id));
}

export function toast(text, kind = 'done') {
  last += 1;
  const id = last;
  toasts.set([...toasts.get().slice(-3), { id, text, kind }]);
  setTimeout(() => drop(id), kind === 'error' ? LIFE_OF_ERRORS_MS : LIFE_MS);
}

/** Runs an action and shows its success or its error in a toast. Resolves to whether it succeeded. */
export async function attempt(action, done) {
  try {
    await action();
  } catch (error) {
    // The sign-in form appears instead of an error.
    if (error.status !== 401) toast(error.message, 'error');
    return false;
  }
  if (done) toast(done);
  return true;
}

export function Toasts() {
  const shown = useWatched(toasts);
  return html`<div class="toasts" role="status" aria-live="polite">
    ${shown.map(
      ({ id, text, kind }) => html`<div class="toast toast-${kind}" data-test="toast" key=${id}>
        <span>${text}</span>
        <button class="plain" aria-label="Dismiss" onClick=${() => drop(id)}>×</button>
      </div>`,
    )}
  </div>`;
}
