// The list of the objects of a kind.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { remove } from '../lib/api.js';
import { useAllUsers } from '../lib/all-users.js';
import { KINDS } from '../lib/kinds.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Audience } from '../lib/sharing.js';
import { Badge, Loaded, Page, Pending, Table, Time, attempt, confirm } from '../lib/ui.js';

export async function eraseOwned(spec, object, options) {
  const text = `This deletes ${object.Name || `the ${spec.one}`} from all webservers, including for users it is shared with. You cannot undo this.`;
  if (!(await confirm({ title: `Delete ${spec.one} ${object.Name}?`, text }))) return false;
  return attempt(() => remove(`${spec.path}/${object[spec.id]}`, options), `The ${spec.one} ${object.Name} was deleted.`);
}

export function OwnedList({ me, kind }) {
  const spec = KINDS[kind];
  const [query, allUsers] = useAllUsers(me);
  const live = useLive(`${spec.path}${query}`, [kind, 'memberships']);
  const people = usePeople();
  const [part, setPart] = useState('');
  const wanted = part.trim().toLowerCase();
  const fits = (one) => [one.Name, one[spec.description], ...one.Labels].some((text) => text.toLowerCase().includes(wanted));
  const rows = (live.data ?? []).filter(fits);
  const columns = [
    {
      title: 'Name',
      kind: 'wide',
      cell: (one) => html`<a href=${`#/${kind}/${one[spec.id]}`} data-test="edit"><b>${one.Name || '(no name)'}</b></a> <${Pending} of=${one} />
        ${one[spec.description] && html`<p class="hint clipped">${one[spec.description]}</p>`}
        ${one.Labels.map((label) => html`<${Badge} key=${label}>${label}<//> `)}`,
    },
    { title: 'Owner', cell: (one) => people.user(one.UID) },
    { title: 'Shared with', cell: (one) => html`<${Audience} of=${one} people=${people} />` },
    { title: 'Updated', cell: (one) => html`<${Time} at=${one[spec.updated]} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => one.Can.Delete && html`<button class="danger" data-test="delete" onClick=${() => eraseOwned(spec, one)}>Delete</button>`,
    },
  ];
  const create = html`<a class="button primary" href=${`#/${kind}/new`} data-test="create-owned">New ${spec.one}</a>`;
  const names = spec.title.toLowerCase();
  const empty = wanted ? `None of the ${names} match. Change the search text to see others.` : `There are no ${names} yet. Select New ${spec.one} to create one.`;
  return html`<${Page} title=${spec.title} actions=${create}>
    <${Loaded} live=${live}>
      <div class="filters">
        <input type="search" data-test="find" aria-label=${`Find ${names}`} placeholder="Find by name, description or label" value=${part} onInput=${(event) => setPart(event.target.value)} />
        ${allUsers}
      </div>
      <${Table} label=${spec.title} columns=${columns} rows=${rows} keyOf=${(one) => one[spec.id]} nameOf=${(one) => one.Name} empty=${empty} />
    <//>
  <//>`;
}
