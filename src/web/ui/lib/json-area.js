// A text area for JSON that reports the position of an error and can move the cursor there.
import { html, useMemo, useRef } from '../vendor/htm-preact-standalone.module.js';
import { Area } from './fields.js';
import { fault, indented } from './json.js';

/**
 * Returns { at, text } for text that is no JSON, or not acceptable here, else null. `wrong(text)` returns a message if the
 * text is valid JSON but not acceptable.
 */
export function jsonFault(text, wrong = () => '') {
  const found = fault(text);
  if (found) return { ...found, text: `Line ${found.line}, column ${found.column}: ${found.message}` };
  const message = wrong(text);
  return message ? { at: 0, text: message } : null;
}

/** As `jsonFault`, evaluated only when the text changes. */
export const useJsonFault = (text, wrong) => useMemo(() => jsonFault(text, wrong), [text]);

/** Returns a message unless the text is that of a JSON object. */
export const isObject = (text) => (text.trim().startsWith('{') ? '' : 'The contents must be a JSON object: { … }');

export function JsonArea({ name, label, value, onValue, problem, rows = 20, readonly }) {
  const area = useRef(null);
  const show = () => {
    const { current } = area;
    current.focus();
    current.setSelectionRange(problem.at, Math.min(problem.at + 1, value.length));
    // The browser does not scroll to a selection set by a script.
    const line = value.slice(0, problem.at).split('\n').length;
    current.scrollTop = (current.scrollHeight / value.split('\n').length) * Math.max(0, line - 5);
  };
  return html`<div class="json">
    <${Area} name=${name} label=${label} rows=${rows} code=${true} area=${area} value=${value} onValue=${onValue} error=${problem?.text} readonly=${readonly} autocomplete="off" />
    <div class="actions">
      ${problem && html`<button type="button" data-test="show-fault" onClick=${show}>Show error</button>`}
      ${!problem && !readonly && html`<button type="button" data-test="indent" onClick=${() => onValue(indented(value))}>Indent</button>`}
    </div>
  </div>`;
}
