// Shared parts of queries: the current query, time ranges, error positions and help.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { useLive } from './live.js';
import { Watched } from './value.js';

/** Contents of the form on the search page; other pages set the query to run it again. */
export const asked = new Watched({ query: '', range: '3600' });

/** Time ranges of the form, in seconds before now. */
export const RANGES = [
  ['900', 'Last 15 minutes'],
  ['3600', 'Last hour'],
  ['86400', 'Last day'],
  ['604800', 'Last 7 days'],
  ['2592000', 'Last 30 days'],
  ['all', 'All time'],
];

/** Converts a range to request parameters. A time range within the query takes precedence. */
export function rangeOf(range) {
  const end = new Date();
  const start = range === 'all' ? new Date(0) : new Date(end.getTime() - Number(range) * 1000);
  return { SearchStart: start.toISOString(), SearchEnd: end.toISOString() };
}

/** Copies a query to the search form and opens the search page. */
export function askAgain(query) {
  asked.set({ ...asked.get(), query });
  location.hash = '#/search';
}

/** Shows the line of the query that contains the error, with a marker below the column. */
export function Mistake({ query, of }) {
  if (!of) return html`<p class="mistake" id="query-mistake" aria-live="polite"></p>`;
  const before = Array.from(query).slice(0, (of.column ?? 1) - 1).join('').split('\n');
  const line = query.split('\n')[before.length - 1] ?? '';
  const mark = `${' '.repeat(Array.from(before[before.length - 1]).length)}▲`;
  return html`<div class="mistake" id="query-mistake" role="alert" data-test="mistake">
    ${of.column && html`<pre class="code" aria-hidden="true">${line}${'\n'}${mark}</pre>`}
    <p class="failure">${of.column ? `Column ${of.column}: ` : ''}${of.message}</p>
  </div>`;
}

const EXAMPLES = [
  ['tag=audit since=-1d | count by user, what', 'changes by user and kind, most frequent first'],
  ['tag=audit since=-7d | select(.op == "delete") | table time user collection key', 'deleted objects, as a table'],
  ['tag=journal since=-15m "failed" -cron', 'journal entries that contain one term but not another'],
  ['tag=journal since=-1h | select((.PRIORITY // "7" | tonumber) <= 3) | count by _HOSTNAME', 'errors by host'],
  ['tag=resource:NAME | sort by n desc | limit 10', 'rows of a resource'],
];

export function Help({ onUse }) {
  const [isOpen, setOpen] = useState(false);
  const tags = useLive('/api/tags', ['admins', 'memberships']).data ?? [];
  const resources = useLive('/api/resources', ['resources', 'memberships']).data ?? [];
  const named = (name) => (/[\s,"|]/.test(name) ? `"${name}"` : name);
  return html`<details class="help" open=${isOpen} onToggle=${(event) => setOpen(event.target.open)} data-test="help">
    <summary>Query syntax</summary>
    ${isOpen &&
    html`<p>
        Before the first <code>|</code>: the sources (<code>tag=</code>, separate several with commas), the time range (<code>since=-1h</code> <code>until=now</code>,
        or dates), terms that rows must contain, and <code>-terms</code> that they must not contain. After it: jq filters, applied to one row at a time, and the stages${' '}
        <code>count</code>, <code>count by FIELD</code>, <code>sort by FIELD desc</code>, <code>limit N</code>, <code>table FIELD …</code>. Press Ctrl+Enter to search.
      </p>
      <ul class="examples">
        ${EXAMPLES.map(([query, text]) => html`<li key=${query}><button type="button" class="plain" onClick=${() => onUse(query)}><code>${query}</code></button> <span class="hint">${text}</span></li>`)}
      </ul>
      <p>
        Available tags: ${tags.map((tag) => html`<code key=${tag}>${tag}</code> `)}
        ${resources.slice(0, 20).map((one) => html`<code key=${one.GUID}>resource:${named(one.ResourceName)}</code> `)}
      </p>`}
  </details>`;
}
