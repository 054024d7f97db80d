// The list of resources.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, remove } from '../lib/api.js';
import { useAllUsers } from '../lib/all-users.js';
import { words } from '../lib/fields.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { DropZone, uploadContents } from '../lib/uploads.js';
import { Area, Badge, Bytes, Field, FormDialog, Loaded, Page, Pending, Table, Time, attempt, confirm, toast } from '../lib/ui.js';

export async function eraseResource(resource) {
  const text = `This deletes ${resource.ResourceName} and its contents from all webservers. Searches that use it will fail. You cannot undo this.`;
  if (!(await confirm({ title: `Delete resource ${resource.ResourceName}?`, text }))) return false;
  return attempt(() => remove(`/api/resources/${resource.GUID}`), `Resource ${resource.ResourceName} was deleted.`);
}

export function CloneResource({ resource, onClose }) {
  const [name, setName] = useState(`${resource.ResourceName} (copy)`);
  const action = async () => {
    const copy = await post(`/api/resources/${resource.GUID}/clone`, { Name: name });
    toast(`Resource ${copy.ResourceName} was created. You own the copy.`);
  };
  return html`<${FormDialog} title=${`Clone ${resource.ResourceName}`} verb="Clone" action=${action} onClose=${onClose}>
    <${Field} name="Name" label="Name of the copy" value=${name} onValue=${setName} required autocomplete="off" />
  <//>`;
}

function NewResource({ onClose }) {
  const [typed, setTyped] = useState({ ResourceName: '', Description: '', Labels: '' });
  const [file, setFile] = useState(null);
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const choose = (chosen) => {
    setFile(chosen);
    if (typed.ResourceName === '') set('ResourceName')(chosen.name);
  };
  const action = async () => {
    const made = await post('/api/resources', { ...typed, Labels: words(typed.Labels) });
    toast(`Resource ${made.ResourceName} was created.`);
    if (file) uploadContents(made.GUID, made.ResourceName, file);
  };
  return html`<${FormDialog} title="New resource" verb="Create" action=${action} onClose=${onClose}>
    <${Field} name="ResourceName" label="Name" value=${typed.ResourceName} onValue=${set('ResourceName')} required autocomplete="off" hint="Searches refer to the resource by this name." />
    <${Area} name="Description" label="Description" rows="3" value=${typed.Description} onValue=${set('Description')} />
    <${Field} name="Labels" label="Labels" hint="Separate labels with commas." value=${typed.Labels} onValue=${set('Labels')} autocomplete="off" />
    <${DropZone} onFile=${choose} text=${file ? `${file.name} will be uploaded when you create the resource.` : 'Contents (you can also upload them later)'} />
  <//>`;
}

export function Resources({ me }) {
  const [query, allUsers] = useAllUsers(me);
  const live = useLive(`/api/resources${query}`, ['resources', 'memberships']);
  const people = usePeople();
  const [part, setPart] = useState('');
  const [isNew, setNew] = useState(false);
  const [cloned, setCloned] = useState(null);
  const wanted = part.trim().toLowerCase();
  const fits = (one) => [one.ResourceName, one.Description, ...one.Labels].some((text) => text.toLowerCase().includes(wanted));
  const columns = [
    {
      title: 'Resource',
      kind: 'wide',
      cell: (one) => html`<a href=${`#/resources/${one.GUID}`} data-test="edit"><b>${one.ResourceName}</b></a> <${Pending} of=${one} />
        ${one.Description && html`<p class="hint clipped">${one.Description}</p>`}
        ${one.Labels.map((label) => html`<${Badge} key=${label}>${label}<//> `)}`,
    },
    { title: 'Owner', cell: (one) => people.user(one.UID) },
    {
      title: 'Shared with',
      cell: (one) => html`<span class="badges">
        ${one.Global && html`<${Badge} kind="info">all users<//>`}
        ${one.GroupACL.map((gid) => html`<${Badge} key=${gid}>${people.group(gid)}<//>`)}
        ${!one.Global && one.GroupACL.length === 0 && html`<span class="faint">not shared</span>`}
      </span>`,
    },
    { title: 'Size', kind: 'number', cell: (one) => html`<${Bytes} of=${one.Size} />` },
    { title: 'Version', kind: 'number', cell: (one) => one.VersionNumber },
    { title: 'Changed', cell: (one) => html`<${Time} at=${one.LastModified} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => html`<a class="button" data-test="download" href=${`/api/resources/${one.GUID}/raw`} download=${one.ResourceName}>Download</a>
        <button data-test="clone" onClick=${() => setCloned(one)}>Clone</button>
        ${(me.Admin || one.UID === me.UID) && html`<button class="danger" data-test="delete" onClick=${() => eraseResource(one)}>Delete</button>`}`,
    },
  ];
  const create = html`<button class="primary" data-test="create-resource" onClick=${() => setNew(true)}>New resource</button>`;
  const empty = wanted ? 'No resource matches. Change the search text to see other resources.' : 'There are no resources yet. Select New resource to create one.';
  return html`<${Page} title="Resources" actions=${create}>
    <${Loaded} live=${live}>
      <div class="filters">
        <input type="search" data-test="find" aria-label="Find resources" placeholder="Find by name, description or label" value=${part} onInput=${(event) => setPart(event.target.value)} />
        ${allUsers}
      </div>
      <${Table} label="Resources" columns=${columns} rows=${(live.data ?? []).filter(fits)} keyOf=${(one) => one.GUID} nameOf=${(one) => one.ResourceName} empty=${empty} />
    <//>
    ${isNew && html`<${NewResource} onClose=${() => setNew(false)} />`}
    ${cloned && html`<${CloneResource} resource=${cloned} onClose=${() => setCloned(null)} />`}
  <//>`;
}
