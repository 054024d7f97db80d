// The results of a search: progress, timeline and rows.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { patch, put, remove } from '../lib/api.js';
import { Histogram } from '../lib/histogram.js';
import { members } from '../lib/json.js';
import { useLive } from '../lib/live.js';
import { usePeople, withGone } from '../lib/people.js';
import { askAgain, asked } from '../lib/query.js';
import { Badge, Bytes, Check, Choice, Facts, FormDialog, Loaded, Picker, Time, attempt, confirm, isNever, spanText } from '../lib/ui.js';

const PAGE_ROWS = 100;
const RUNNING_MS = 500;
const COLUMNS_MAX = 12;

export const STATES = {
  running: ['info', 'running'],
  done: ['', 'done'],
  stopped: ['warn', 'stopped'],
  failed: ['error', 'failed'],
  interrupted: ['warn', 'interrupted'],
};

export function SearchState({ of }) {
  const [kind, text] = STATES[of.Progress] ?? ['', of.Progress];
  return html`<${Badge} kind=${kind} test="search-state">${text}<//>`;
}

export async function eraseSearch(search) {
  const text = 'This deletes the search and its results from all webservers. You cannot undo this.';
  if (!(await confirm({ title: 'Delete this search?', text }))) return false;
  return attempt(() => remove(`/api/searchctrl/${search.ID}`), 'The search was deleted.');
}

/** Formats a value; strings have no quotation marks. */
function cellText(raw) {
  if (raw === undefined || raw === 'null') return '';
  return raw.startsWith('"') ? JSON.parse(raw) : raw;
}

function Share({ me, search, onClose }) {
  const { groupOptions } = usePeople();
  const [gids, setGids] = useState(search.GIDs ?? []);
  const [isGlobal, setGlobal] = useState(search.Global);
  const own = me.Groups.map((group) => group.GID);
  const options = me.Admin ? groupOptions : groupOptions.filter(([gid]) => own.includes(gid));
  const action = async () => {
    await put(`/api/searchctrl/${search.ID}/groups`, { GIDs: gids });
    if (me.Admin && isGlobal !== search.Global) await put(`/api/searchctrl/${search.ID}/global`, { Global: isGlobal });
  };
  return html`<${FormDialog} title="Share this search" verb="Share" action=${action} onClose=${onClose}>
    <${Check} name="Global" label="All users can view it" value=${isGlobal} disabled=${!me.Admin} hint=${me.Admin ? '' : '(set by administrators)'} onValue=${setGlobal} />
    <${Picker} label="Groups that can view it" test="share-read" value=${gids} options=${withGone(options, gids)} none="There are no groups to share with." onValue=${setGids} />
  <//>`;
}

function Actions({ me, search }) {
  const [isSharing, setSharing] = useState(false);
  const path = `/api/searchctrl/${search.ID}`;
  const isOwn = me.Admin || search.UID === me.UID;
  const isRunning = search.Progress === 'running';
  const formats = ['text', 'json', 'csv'];
  const erase = async () => {
    if (await eraseSearch(search)) location.hash = '#/searches';
  };
  return html`<div class="actions">
    ${isOwn && isRunning && html`<button data-test="stop" onClick=${() => attempt(() => put(`${path}/stop`))}>Stop</button>`}
    ${formats.map((format) => html`<a key=${format} class="button" data-test=${`download-${format}`} href=${`${path}/download/${format}`} download="">${format.toUpperCase()}</a>`)}
    ${isOwn && !search.Saved && !isRunning && html`<button data-test="save-search" onClick=${() => attempt(() => patch(`${path}/save`), 'The results are now saved on all webservers.')}>Save</button>`}
    ${isOwn && isRunning && !search.Background && html`<button data-test="background" onClick=${() => attempt(() => patch(`${path}/background`), 'The search continues in the background.')}>Run in background</button>`}
    ${isOwn && html`<button data-test="share" onClick=${() => setSharing(true)}>Share</button>`}
    <button data-test="again" onClick=${() => askAgain(search.UserQuery)}>Edit query</button>
    ${isOwn && html`<button class="danger" data-test="delete" onClick=${erase}>Delete</button>`}
    ${isSharing && html`<${Share} me=${me} search=${search} onClose=${() => setSharing(false)} />`}
  </div>`;
}

const number = (value) => Number(value).toLocaleString('en');

function Head({ me, search }) {
  const people = usePeople();
  const where = search.Saved ? html`saved on all webservers` : html`webserver <b data-test="holder">${search.Webserver}</b>`;
  const ms = Number.parseInt(search.Duration, 10);
  return html`<section class="card">
    <header class="card-head"><h2>Results</h2><${SearchState} of=${search} /></header>
    <${Actions} me=${me} search=${search} />
    <code class="query" data-test="query">${search.UserQuery}</code>
    <${Facts} of=${[
      ['Rows', html`<span data-test="row-count">${number(search.ItemCount)}</span> of ${number(search.InputCount)} scanned`],
      ['Size', html`<${Bytes} of=${search.StoreSize} />`],
      ['Time', ms < 1000 ? `${ms} ms` : spanText(ms)],
      ['Owner', people.user(search.UID)],
      ['Started', html`<${Time} at=${search.Started} />`],
      ['Results', where],
      ['Kept until', isNever(search.LaunchInfo.expires) ? 'deleted' : html`<${Time} at=${search.LaunchInfo.expires} />`],
    ]} />
    ${search.Reason && html`<p class=${search.Progress === 'failed' ? 'failure' : 'note note-warn'} role="status" data-test="reason">${search.Reason}</p>`}
    ${(search.Warnings ?? []).map((warning) => html`<p key=${warning} class="note note-warn" role="status" data-test="warning">${warning}</p>`)}
  </section>`;
}

/** Returns the fields of the rows, the most frequent first. */
function columnsOf(search, parsed) {
  if (search.Columns) return search.Columns;
  const counts = new Map();
  for (const fields of parsed) for (const name of fields.keys()) counts.set(name, (counts.get(name) ?? 0) + 1);
  const names = [...counts].filter(([name]) => !name.startsWith('__')).sort(([, one], [, other]) => other - one);
  return names.slice(0, COLUMNS_MAX).map(([name]) => name);
}

function AsTable({ search, rows }) {
  const parsed = rows.map((row) => (row.Json.startsWith('{') ? members(row.Json) : new Map([['data', row.Json]])));
  const columns = columnsOf(search, parsed);
  return html`<div class="table-frame">
    <table aria-label="Rows" class="rows">
      <thead><tr>${!search.Columns && html`<th scope="col">time</th>`}${columns.map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
      <tbody>
        ${rows.map(
          (row, at) => html`<tr key=${at} data-test="result-row">
            ${!search.Columns && html`<td data-label="time"><div class="stamp" title=${row.Tag}>${row.TS.replace('T', ' ').replace('Z', '')}</div></td>`}
            ${columns.map((name) => html`<td key=${name} data-label=${name}><div class="clipped-cell">${cellText(parsed[at].get(name))}</div></td>`)}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

const AsRaw = ({ rows }) => html`<div class="raw">
  ${rows.map((row, at) => html`<div class="raw-row" key=${at} data-test="result-row"><span class="stamp">${row.TS.replace('T', ' ').replace('Z', '')}</span><pre class="code">${row.Json.startsWith('"') ? JSON.parse(row.Json) : row.Json}</pre></div>`)}
</div>`;

function Rows({ search, between, onBetween }) {
  const [first, setFirst] = useState(0);
  const [chosen, setLook] = useState(search.Columns ? 'table' : '');
  const range = between ? `&since=${between[0]}&until=${between[1]}` : '';
  useEffect(() => setFirst(0), [range]);
  const isRunning = search.Progress === 'running';
  const live = useLive(`/api/searchctrl/${search.ID}/rows?first=${first}&count=${PAGE_ROWS}${range}`, [], { everyMs: isRunning ? RUNNING_MS * 2 : 0 });
  // The last rows are available when the search has finished.
  useEffect(() => {
    live.reload();
  }, [search.Progress]);
  const rows = live.data?.Rows ?? [];
  const look = chosen || (rows[0]?.Json.startsWith('{') ? 'table' : 'raw');
  const total = live.data?.Total ?? 0;
  const last = first + rows.length;
  return html`<section class="card">
    <header class="card-head">
      <h2>Rows</h2>
      <div class="actions">
        ${between && html`<button data-test="all-times" onClick=${() => onBetween(null)}>Show all rows</button>`}
        <${Choice} name="look" label="View" value=${look} onValue=${setLook} options=${[['table', 'Table'], ['raw', 'Raw']]} />
      </div>
    </header>
    <${Loaded} live=${live}>
      ${rows.length === 0
        ? html`<div class="empty" data-test="empty">${isRunning ? 'No rows yet.' : 'No rows found.'}</div>`
        : look === 'table' ? html`<${AsTable} search=${search} rows=${rows} />` : html`<${AsRaw} rows=${rows} />`}
      ${total > 0 &&
      html`<footer class="pager">
        <button disabled=${first === 0} data-test="previous" onClick=${() => setFirst(Math.max(0, first - PAGE_ROWS))}>Previous</button>
        <span data-test="range">${number(first + 1)} to ${number(last)} of ${number(total)}</span>
        <button disabled=${last >= total} data-test="next" onClick=${() => setFirst(last)}>Next</button>
      </footer>`}
    <//>
  </section>`;
}

export function SearchResults({ me, id }) {
  const path = `/api/searchctrl/${id}`;
  const [isRunning, setRunning] = useState(true);
  const [between, setBetween] = useState(null);
  const live = useLive(`${path}/details`, ['searches', 'memberships'], { everyMs: isRunning ? RUNNING_MS : 0 });
  const search = live.data;
  useEffect(() => {
    if (!search) return;
    setRunning(search.Progress === 'running');
    if (asked.get().query === '') asked.set({ ...asked.get(), query: search.UserQuery });
  }, [search?.Progress]);
  if (!search) return html`<${Loaded} live=${live} />`;
  if (live.error?.status === 404) return html`<div class="empty" role="alert">This search was deleted or is no longer shared with you.</div>`;
  return html`<div class="results">
    <${Head} me=${me} search=${search} />
    <${Histogram} search=${search} between=${between} onBetween=${setBetween} />
    <${Rows} search=${search} between=${between} onBetween=${setBetween} />
  </div>`;
}
