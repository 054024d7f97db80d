// Renders log entries.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Badge, Time, bytesText } from './ui.js';

/** Returns the hash of the page with the history of an object. Keys may contain slashes. */
export const objectHash = (collection, key) => `#/log/${encodeURIComponent(collection)}/${encodeURIComponent(key)}`;

function Op({ op, isOpen }) {
  const isDelete = op.Op === 'delete';
  const name = `${op.Collection}/${op.Key}`;
  return html`<li class=${isDelete ? 'op op-delete' : 'op'} data-test=${`op-${op.Op}`}>
    <${Badge} kind=${isDelete ? 'error' : 'good'}>${isDelete ? 'deleted' : 'put'}<//>
    ${isOpen(op.Collection) ? html`<a href=${objectHash(op.Collection, op.Key)}>${name}</a>` : html`<span title="The contents of this collection are hidden">${name}</span>`}
    ${op.Value && html`<span class="faint">${bytesText(op.Value.Bytes)}</span>`}
  </li>`;
}

export function Head({ entry }) {
  const { Author } = entry;
  return html`<header class="entry-head">
    <span class="seq">#${entry.Seq}</span>
    <b>${Author?.What || (entry.Rejected ? 'rejected' : entry.Unknown !== undefined ? 'from a newer version' : 'change')}</b>
    <span class="faint">
      ${Author?.User ? `${Author.User}${Author.From ? ` from ${Author.From}` : ''}, ` : ''}via ${Author?.Via || entry.Member}
    </span>
    <${Time} at=${entry.Time} />
  </header>`;
}

/** One entry; `isOpen(collection)` returns whether objects of the collection are visible. */
export function Entry({ entry, isOpen }) {
  return html`<li class="entry" data-test="entry" data-seq=${entry.Seq}>
    <${Head} entry=${entry} />
    ${entry.Rejected && html`<p class="failure">Rejected: ${entry.Rejected}</p>`}
    ${entry.Ops?.length > 0 && html`<ul class="ops">${entry.Ops.map((op, at) => html`<${Op} key=${at} op=${op} isOpen=${isOpen} />`)}</ul>`}
  </li>`;
}
