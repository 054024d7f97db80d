// Input fields with labels.
import { html, useRef, useState } from '../vendor/htm-preact-standalone.module.js';

let last = 0;

function useId() {
  const id = useRef('');
  if (!id.current) {
    last += 1;
    id.current = `f${last}`;
  }
  return id.current;
}

function Frame({ id, label, hint, error, children }) {
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="failure" id=${`${id}-error`} role="alert">${error}</p>`}
  </div>`;
}

const described = (id, hint, error) => [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ') || undefined;

/** A line of text. Tests find it by `name`. */
export function Field({ name, label, value, onValue, hint, error, type = 'text', test, ...rest }) {
  const id = useId();
  return html`<${Frame} id=${id} label=${label} hint=${hint} error=${error}>
    <input
      id=${id}
      name=${name}
      type=${type}
      value=${value}
      data-test=${test ?? `field-${name}`}
      aria-describedby=${described(id, hint, error)}
      aria-invalid=${error ? 'true' : undefined}
      onInput=${(event) => onValue(event.target.value)}
      ...${rest}
    />
  <//>`;
}

/** Several lines of text. */
export function Area({ name, label, value, onValue, hint, error, rows = 4, code, area, ...rest }) {
  const id = useId();
  return html`<${Frame} id=${id} label=${label} hint=${hint} error=${error}>
    <textarea
      id=${id}
      ref=${area}
      name=${name}
      rows=${rows}
      class=${code ? 'code' : ''}
      spellcheck=${code ? 'false' : 'true'}
      value=${value}
      data-test=${`field-${name}`}
      aria-describedby=${described(id, hint, error)}
      aria-invalid=${error ? 'true' : undefined}
      onInput=${(event) => onValue(event.target.value)}
      ...${rest}
    ></textarea>
  <//>`;
}

/** A single choice; `options` are [value, text]. */
export function Choice({ name, label, value, onValue, options, hint }) {
  const id = useId();
  return html`<${Frame} id=${id} label=${label} hint=${hint}>
    <select id=${id} name=${name} data-test=${`field-${name}`} onChange=${(event) => onValue(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} selected=${String(key) === String(value)}>${text}</option>`)}
    </select>
  <//>`;
}

export function Check({ name, label, value, onValue, hint, disabled, test }) {
  return html`<label class="check">
    <input
      type="checkbox"
      name=${name}
      checked=${value}
      disabled=${disabled}
      data-test=${test ?? `field-${name}`}
      onChange=${(event) => onValue(event.target.checked)}
    />
    <span>${label}${hint && html`<span class="hint"> ${hint}</span>`}</span>
  </label>`;
}

/** A multiple choice; `options` are [value, text]. Long lists have a search field. */
export function Picker({ label, value, onValue, options, none, test, disabled }) {
  const [filter, setFilter] = useState('');
  const fits = ([, text]) => text.toLowerCase().includes(filter.toLowerCase());
  const toggle = (key, on) => onValue(on ? [...value, key] : value.filter((other) => other !== key));
  return html`<fieldset class="picker" disabled=${disabled}>
    <legend>${label}</legend>
    ${options.length === 0 && html`<p class="hint">${none}</p>`}
    ${options.length > 8 &&
    html`<input type="search" placeholder="Find" aria-label=${`Find in ${label}`} value=${filter} onInput=${(event) => setFilter(event.target.value)} />`}
    <div class="picker-list">
      ${options.filter(fits).map(
        ([key, text]) =>
          html`<${Check} key=${key} name=${String(key)} label=${text} test=${`${test}-${text}`} value=${value.includes(key)} onValue=${(on) => toggle(key, on)} />`,
      )}
    </div>
  </fieldset>`;
}

/** Splits comma-separated text into a list without duplicates. */
export const words = (text) => [...new Set(text.split(',').map((word) => word.trim()).filter(Boolean))];
