// Renders a line diff.
import { html, useMemo } from '../vendor/htm-preact-standalone.module.js';
import { diff, shortened } from './diff.js';

const SIGNS = { same: ' ', removed: '−', added: '+' };
const SPOKEN = { removed: 'removed', added: 'added' };

export function Differences({ before, after }) {
  const lines = useMemo(() => shortened(diff(before, after)), [before, after]);
  if (lines.every((line) => line.kind === 'skipped' || line.kind === 'same')) {
    return html`<p class="hint">No differences.</p>`;
  }
  return html`<div class="diff" tabindex="0" role="group" aria-label="Differences">
    ${lines.map((line) =>
      line.kind === 'skipped'
        ? html`<div class="diff-skipped">${line.count} unchanged ${line.count === 1 ? 'line' : 'lines'}</div>`
        : html`<div class="diff-line diff-${line.kind}">
            <span class="diff-sign" aria-label=${SPOKEN[line.kind]}>${SIGNS[line.kind]}</span><span>${line.line}</span>
          </div>`,
    )}
  </div>`;
}
