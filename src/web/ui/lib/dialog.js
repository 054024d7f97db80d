// Native dialogs: the browser keeps the focus inside, and Escape closes them.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { Watched, useWatched } from './value.js';

export function Dialog({ title, onClose, wide, children }) {
  const element = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    if (!element.current.open) element.current.showModal();
    // Focus the first field, or Cancel in confirmations of destructive actions.
    element.current.querySelector('.fields input, .fields select, .fields textarea, .field input, [data-test="cancel"]')?.focus();
    return () => before?.focus?.();
  }, []);
  const cancelled = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${element} class=${wide ? 'wide' : ''} onCancel=${cancelled} aria-label=${title}>
    <header>
      <h2>${title}</h2>
      <button type="button" class="plain" aria-label="Close" data-test="close" onClick=${onClose}>×</button>
    </header>
    ${children}
  </dialog>`;
}

/** A dialog with a form. If `action` fails, the error is shown above the buttons and the input is kept. */
export function FormDialog({ title, onClose, action, verb = 'Save', wide, children }) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState('');
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure('');
    try {
      await action();
      onClose();
    } catch (error) {
      setFailure(error.message);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose} wide=${wide}>
    <form onSubmit=${submit}>
      <div class="fields">${children}</div>
      ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
      <footer>
        <button type="button" onClick=${onClose} data-test="cancel">Cancel</button>
        <button type="submit" class="primary" disabled=${busy} data-test="save">${verb}</button>
      </footer>
    </form>
  <//>`;
}

const question = new Watched(null);

/** Asks for confirmation. `word`: text that the user must type. Resolves to whether the user confirmed. */
export function confirm({ title, text, verb = 'Delete', word }) {
  return new Promise((resolve) => question.set({ title, text, verb, word, resolve }));
}

export function Confirm() {
  const asked = useWatched(question);
  return asked && html`<${Question} asked=${asked} key=${asked.title} />`;
}

function Question({ asked }) {
  const { title, text, verb, word, resolve } = asked;
  const [typed, setTyped] = useState('');
  const answer = (yes) => {
    question.set(null);
    resolve(yes);
  };
  const submit = (event) => {
    event.preventDefault();
    answer(true);
  };
  return html`<${Dialog} title=${title} onClose=${() => answer(false)}>
    <form onSubmit=${submit}>
      <p class="prose">${text}</p>
      ${word &&
      html`<label class="field">
        <span>Type <b>${word}</b> to confirm</span>
        <input data-test="field-word" value=${typed} autocomplete="off" onInput=${(event) => setTyped(event.target.value)} />
      </label>`}
      <footer>
        <button type="button" data-test="cancel" onClick=${() => answer(false)}>Cancel</button>
        <button type="submit" class="danger" data-test="confirm" disabled=${word && typed !== word}>${verb}</button>
      </footer>
    </form>
  <//>`;
}
