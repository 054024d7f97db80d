// The list of users.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post } from '../lib/api.js';
import { useLive } from '../lib/live.js';
import { USERS, usePeople } from '../lib/people.js';
import { Badge, Check, Field, FormDialog, Loaded, Page, Pending, Picker, Table, Time, toast } from '../lib/ui.js';

function NewUser({ onClose }) {
  const { groupOptions } = usePeople();
  const [typed, setTyped] = useState({ User: '', Name: '', Email: '', Pass: '', Admin: false, GIDs: [] });
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const create = async () => {
    const { GIDs, ...user } = typed;
    const uid = await post('/api/users', user);
    if (GIDs.length > 0) {
      try {
        await post(`/api/users/${uid}/group`, { GIDs });
      } catch (error) {
        // The user already exists, so the form must not be submitted again.
        toast(`User ${user.User} was created, but could not be added to groups: ${error.message}`, 'error');
        return;
      }
    }
    toast(`User ${user.User} was created.`);
  };
  return html`<${FormDialog} title="New user" verb="Create" action=${create} onClose=${onClose}>
    <${Field} name="User" label="User name" value=${typed.User} onValue=${set('User')} required maxlength="128" autocomplete="off" autocapitalize="none" />
    <${Field} name="Name" label="Full name" value=${typed.Name} onValue=${set('Name')} autocomplete="off" />
    <${Field} name="Email" label="E-mail" type="email" value=${typed.Email} onValue=${set('Email')} autocomplete="off" />
    <${Field} name="Pass" label="Password" type="password" value=${typed.Pass} onValue=${set('Pass')} required autocomplete="new-password" />
    <${Check} name="Admin" label="Administrator" hint="can view and change everything" value=${typed.Admin} onValue=${set('Admin')} />
    <${Picker} label="Groups" test="group" value=${typed.GIDs} onValue=${set('GIDs')} options=${groupOptions} none="There are no groups yet." />
  <//>`;
}

export function Users({ me }) {
  const live = useLive('/api/users', [...USERS, 'sessions']);
  const [isNew, setNew] = useState(false);
  const [part, setPart] = useState('');
  const wanted = part.trim().toLowerCase();
  const fits = (user) => [user.User, user.Name, user.Email].some((text) => text.toLowerCase().includes(wanted));
  const name = (user) => (me.Admin ? html`<a href=${`#/users/${user.UID}`} data-test="edit"><b>${user.User}</b></a>` : html`<b>${user.User}</b>`);
  const columns = [
    { title: 'User', cell: name },
    { title: 'Name', cell: (user) => user.Name.trim() || '–' },
    { title: 'E-mail', cell: (user) => user.Email.trim() || '–' },
    { title: 'Groups', cell: (user) => (user.Groups.length > 0 ? html`<span class="badges">${user.Groups.map((group) => html`<${Badge} key=${group.GID}>${group.Name}<//>`)}</span>` : '–') },
    {
      title: 'State',
      cell: (user) => html`<span class="badges">
        ${user.Admin && html`<${Badge} kind="info" test="is-admin">administrator<//>`}
        ${user.Locked ? html`<${Badge} kind="error" test="is-locked">locked<//>` : html`<span class="faint">${user.Admin ? '' : 'active'}</span>`}
        <${Pending} of=${user} />
      </span>`,
    },
    { title: 'Last seen', cell: (user) => html`<${Time} at=${user.TS} />` },
  ];
  const actions = me.Admin
    ? html`<button class="primary" data-test="create-user" onClick=${() => setNew(true)}>New user</button>`
    : html`<a class="button" href="#/profile">Your profile</a>`;
  return html`<${Page} title="Users" actions=${actions}>
    <${Loaded} live=${live}>
      <div class="filters">
        <input type="search" data-test="find" aria-label="Find users" placeholder="Find by name or e-mail" value=${part} onInput=${(event) => setPart(event.target.value)} />
      </div>
      <${Table} label="Users" columns=${columns} rows=${(live.data ?? []).filter(fits)} keyOf=${(user) => user.UID} nameOf=${(user) => user.User} empty="No user matches. Change the search text to see other users." />
    <//>
    ${isNew && html`<${NewUser} onClose=${() => setNew(false)} />`}
  <//>`;
}
