// The list of searches on all webservers.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { useAllUsers } from '../lib/all-users.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { askAgain } from '../lib/query.js';
import { Badge, Bytes, Loaded, Page, Table, Time } from '../lib/ui.js';
import { SearchState, eraseSearch } from './search-results.js';

export function Searches({ me }) {
  const [query, allUsers] = useAllUsers(me);
  const live = useLive(`/api/searchctrl${query}`, ['searches', 'memberships']);
  const people = usePeople();
  const columns = [
    {
      title: 'Search',
      kind: 'wide',
      cell: (one) => html`<a href=${`#/search/${one.ID}`} data-test="open">${one.Name || html`<code class="query">${one.UserQuery}</code>`}</a>
        ${one.Name && html`<p class="hint"><code>${one.UserQuery}</code></p>`}`,
    },
    { title: 'State', cell: (one) => html`<${SearchState} of=${one} />${one.State.includes('BACKGROUNDED') && html` <${Badge}>background<//>`}` },
    { title: 'Results on', cell: (one) => (one.State.includes('SAVED') ? html`<${Badge} kind="info">all webservers<//>` : html`<span data-test="holder">${one.Webserver}</span>`) },
    { title: 'Rows', kind: 'number', cell: (one) => Number(one.ItemCount).toLocaleString('en') },
    { title: 'Size', kind: 'number', cell: (one) => html`<${Bytes} of=${one.StoredData} />` },
    { title: 'Owner', cell: (one) => people.user(one.UID) },
    { title: 'Started', cell: (one) => html`<${Time} at=${one.LaunchInfo.started} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => html`<button data-test="again" onClick=${() => askAgain(one.UserQuery)}>Run again</button>
        ${(me.Admin || one.UID === me.UID) && html`<button class="danger" data-test="delete" onClick=${() => eraseSearch(one)}>Delete</button>`}`,
    },
  ];
  const actions = html`<a class="button primary" href="#/search" data-test="new-search">New search</a>`;
  return html`<${Page} title="Searches" actions=${actions}>
    <${Loaded} live=${live}>
      <div class="filters">${allUsers}</div>
      <${Table} label="Searches" columns=${columns} rows=${live.data ?? []} keyOf=${(one) => one.ID} nameOf=${(one) => one.UserQuery} empty="There are no searches yet. Searches on all webservers appear here." />
    <//>
  <//>`;
}
