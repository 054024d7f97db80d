// The search history.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { remove } from '../lib/api.js';
import { useAllUsers } from '../lib/all-users.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { askAgain } from '../lib/query.js';
import { Badge, Loaded, Page, Pending, Table, Time, attempt, confirm } from '../lib/ui.js';

const TYPING_MS = 250;

async function clear() {
  const text = 'This deletes your search history on all webservers. You cannot undo this.';
  if (await confirm({ title: 'Clear your search history?', text, verb: 'Clear' })) {
    await attempt(() => remove('/api/searchhistory'), 'Your search history was cleared.');
  }
}

export function History({ me }) {
  const [query, allUsers] = useAllUsers(me);
  const [typed, setTyped] = useState('');
  const [refine, setRefine] = useState('');
  useEffect(() => {
    const timer = setTimeout(() => setRefine(typed), TYPING_MS);
    return () => clearTimeout(timer);
  }, [typed]);
  const parts = [query.slice(1), refine && `refine=${encodeURIComponent(refine)}`].filter(Boolean);
  const live = useLive(`/api/searchhistory${parts.length > 0 ? `?${parts.join('&')}` : ''}`, ['history']);
  const people = usePeople();
  const columns = [
    {
      title: 'Search',
      kind: 'wide',
      cell: (entry) => html`<code class="query">${entry.UserQuery}</code> <${Pending} of=${entry} />
        ${entry.EffectiveQuery !== entry.UserQuery && html`<p class="hint">ran as <code>${entry.EffectiveQuery}</code></p>`}`,
    },
    { title: 'User', cell: (entry) => people.user(entry.UID) },
    {
      title: 'Shared with',
      cell: (entry) => {
        const groups = [...new Set([entry.GID, ...(entry.GIDs ?? [])])].filter((gid) => gid !== 0);
        if (!entry.Global && groups.length === 0) return html`<span class="faint">not shared</span>`;
        return html`${entry.Global && html`<${Badge} kind="info">all users<//> `}${groups.map((gid) => html`<${Badge} key=${gid}>${people.group(gid)}<//> `)}`;
      },
    },
    { title: 'Started', cell: (entry) => html`<${Time} at=${entry.Launched} />` },
    { title: 'Actions', kind: 'actions', cell: (entry) => html`<button data-test="again" onClick=${() => askAgain(entry.UserQuery)}>Run again</button>` },
  ];
  const actions = html`<button class="danger" data-test="delete" disabled=${(live.data ?? []).length === 0} onClick=${clear}>Clear your history</button>`;
  const empty = refine ? 'No search matches. Change the search text to see other searches.' : 'There are no searches yet. Searches that you run on any webserver appear here.';
  return html`<${Page} title="Search history" actions=${actions}>
    <div class="filters">
      <input type="search" data-test="find" aria-label="Find searches" placeholder="Find by a part of the search" value=${typed} onInput=${(event) => setTyped(event.target.value)} />
      ${allUsers}
    </div>
    <${Loaded} live=${live}>
      <${Table} label="Search history" columns=${columns} rows=${live.data ?? []} keyOf=${(entry) => `${entry.UID}/${entry.ID}`} nameOf=${(entry) => entry.UserQuery} empty=${empty} />
    <//>
  <//>`;
}
