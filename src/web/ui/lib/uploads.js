// Uploads continue while the user visits other pages; the shell shows their progress.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { upload } from './api.js';
import { toast } from './toast.js';
import { Watched, useWatched } from './value.js';

const running = new Watched([]);
let last = 0;

const change = (id, changes) => running.set(running.get().map((one) => (one.id === id ? { ...one, ...changes } : one)));

/** Uploads a file as the contents of a resource and reports the outcome in a toast. */
export async function uploadContents(guid, name, file) {
  last += 1;
  const id = last;
  const form = new FormData();
  form.append('file', file);
  const { done, cancel } = upload('PUT', `/api/resources/${guid}/raw`, form, (part) => change(id, { part }));
  running.set([...running.get(), { id, guid, name, part: 0, cancel }]);
  try {
    await done;
    toast(`Uploaded the contents of ${name}.`);
  } catch (error) {
    if (error.status !== 401) toast(`${name}: ${error.message}`, 'error');
  }
  running.set(running.get().filter((one) => one.id !== id));
}

export function Uploads() {
  const shown = useWatched(running);
  const isBusy = shown.length > 0;
  useEffect(() => {
    if (!isBusy) return undefined;
    const warn = (event) => event.preventDefault();
    addEventListener('beforeunload', warn);
    return () => removeEventListener('beforeunload', warn);
  }, [isBusy]);
  return html`<div class="uploads" data-test="uploads">
    ${shown.map(
      ({ id, name, part, cancel }) => html`<div class="upload" key=${id} data-test="upload">
        <span>${part < 1 ? `Uploading ${name}` : `Storing ${name}`}</span>
        <progress max="1" value=${part} aria-label=${`Upload of ${name}`}></progress>
        <span class="percent">${Math.floor(part * 100)} %</span>
        <button class="plain" onClick=${cancel}>Cancel</button>
      </div>`,
    )}
  </div>`;
}

/** A drop target for a file, with a button that opens the file dialog. */
export function DropZone({ onFile, text }) {
  const [isOver, setOver] = useState(false);
  const input = useRef(null);
  const dropped = (event) => {
    event.preventDefault();
    setOver(false);
    const file = event.dataTransfer.files[0];
    if (file) onFile(file);
  };
  const over = (event) => {
    event.preventDefault();
    setOver(true);
  };
  const chosen = (event) => {
    const file = event.target.files[0];
    if (file) onFile(file);
    // So that the same file can be chosen again.
    event.target.value = '';
  };
  return html`<div class=${`drop ${isOver ? 'drop-over' : ''}`} data-test="drop" onDragOver=${over} onDragLeave=${() => setOver(false)} onDrop=${dropped}>
    <p>${text}</p>
    <p class="hint">Drop a file here, or</p>
    <button type="button" onClick=${() => input.current.click()}>Choose a file</button>
    <input ref=${input} class="hidden-text" type="file" tabindex="-1" aria-label="File" data-test="file" onChange=${chosen} />
  </div>`;
}
