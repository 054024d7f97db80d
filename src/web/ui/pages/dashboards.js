// The list of dashboards.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, remove } from '../lib/api.js';
import { useAllUsers } from '../lib/all-users.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Audience } from '../lib/sharing.js';
import { Badge, Loaded, Page, Pending, Table, Time, attempt, confirm } from '../lib/ui.js';

export async function eraseDashboard(dashboard, options) {
  const text = `This deletes ${dashboard.Name || 'the dashboard'} from all webservers, including for users it is shared with. You cannot undo this.`;
  if (!(await confirm({ title: `Delete dashboard ${dashboard.Name}?`, text }))) return false;
  return attempt(() => remove(`/api/dashboards/${dashboard.ID}`, options), `Dashboard ${dashboard.Name} was deleted.`);
}

export async function cloneDashboard(dashboard) {
  let id;
  const done = await attempt(async () => {
    id = await post(`/api/dashboards/${dashboard.ID}/clone`);
  }, `Dashboard ${dashboard.Name} was copied. You own the copy.`);
  if (done) location.hash = `#/dashboards/${id}`;
}

export function Dashboards({ me }) {
  const [query, allUsers] = useAllUsers(me);
  const live = useLive(`/api/dashboards${query}`, ['dashboards', 'memberships']);
  const people = usePeople();
  const [part, setPart] = useState('');
  const wanted = part.trim().toLowerCase();
  const fits = (one) => [one.Name, one.Description, ...one.Labels].some((text) => text.toLowerCase().includes(wanted));
  const rows = (live.data ?? []).filter(fits);
  const mayDelete = (dashboard) => me.Admin || dashboard.UID === me.UID;
  const columns = [
    {
      title: 'Dashboard',
      kind: 'wide',
      cell: (one) => html`<a href=${`#/dashboards/${one.ID}`} data-test="edit"><b>${one.Name || '(no name)'}</b></a> <${Pending} of=${one} />
        ${one.Description && html`<p class="hint clipped">${one.Description}</p>`}
        ${one.Labels.map((label) => html`<${Badge} key=${label}>${label}<//> `)}`,
    },
    { title: 'Owner', cell: (one) => people.user(one.UID) },
    { title: 'Shared with', cell: (one) => html`<${Audience} of=${one} people=${people} />` },
    { title: 'Updated', cell: (one) => html`<${Time} at=${one.Updated} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => html`<button data-test="clone" onClick=${() => cloneDashboard(one)}>Clone</button>
        ${mayDelete(one) && html`<button class="danger" data-test="delete" onClick=${() => eraseDashboard(one)}>Delete</button>`}`,
    },
  ];
  const create = html`<a class="button primary" href="#/dashboards/new" data-test="create-dashboard">New dashboard</a>`;
  const empty = wanted ? 'No dashboard matches. Change the search text to see other dashboards.' : 'There are no dashboards yet. Select New dashboard to create one.';
  return html`<${Page} title="Dashboards" actions=${create}>
    <${Loaded} live=${live}>
      <div class="filters">
        <input type="search" data-test="find" aria-label="Find dashboards" placeholder="Find by name, description or label" value=${part} onInput=${(event) => setPart(event.target.value)} />
        ${allUsers}
      </div>
      <${Table} label="Dashboards" columns=${columns} rows=${rows} keyOf=${(one) => one.ID} nameOf=${(one) => one.Name} empty=${empty} />
    <//>
  <//>`;
}
