// The list of groups, which objects can be shared with.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, put, remove } from '../lib/api.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Area, Badge, Field, FormDialog, Loaded, Page, Pending, Picker, Table, attempt, confirm, toast } from '../lib/ui.js';

const members = (users, gid) => users.filter((user) => user.Groups.some((group) => group.GID === gid));

/** Creates or changes a group. Groups have no version: the last saved name and description win. */
function GroupForm({ group, onClose }) {
  const { users } = usePeople();
  const [typed, setTyped] = useState({ Name: group?.Name ?? '', Desc: group?.Desc ?? '' });
  // Send only members that were selected or deselected here, because other users may change memberships at the same time.
  const [ticked, setTicked] = useState({});
  const before = group ? members(users, group.GID).map((user) => user.UID) : [];
  const chosen = users.map((user) => user.UID).filter((uid) => ticked[uid] ?? before.includes(uid));
  const choose = (uids) => {
    const changed = users.map((user) => user.UID).find((uid) => uids.includes(uid) !== chosen.includes(uid));
    if (changed !== undefined) setTicked((old) => ({ ...old, [changed]: uids.includes(changed) }));
  };
  const [made, setMade] = useState(group?.GID);
  const action = async () => {
    let gid = made;
    if (gid === undefined) {
      gid = await post('/api/groups', typed);
      setMade(gid);
    } else {
      // In the API an empty description keeps the current one, and a space clears it.
      await put(`/api/groups/${gid}`, { Name: typed.Name, Desc: typed.Desc || ' ' });
    }
    for (const [uid, isIn] of Object.entries(ticked)) {
      if (isIn === before.includes(Number(uid))) continue;
      if (isIn) await post(`/api/users/${uid}/group`, { GIDs: [gid] });
      else await remove(`/api/users/${uid}/group/${gid}`);
    }
    toast(group ? 'Saved.' : `Group ${typed.Name} was created.`);
  };
  return html`<${FormDialog} title=${group ? `Group ${group.Name}` : 'New group'} verb=${group ? 'Save' : 'Create'} action=${action} onClose=${onClose}>
    <${Field} name="Name" label="Name" value=${typed.Name} onValue=${(Name) => setTyped({ ...typed, Name })} required maxlength="128" autocomplete="off" />
    <${Area} name="Desc" label="Description" rows="3" value=${typed.Desc} onValue=${(Desc) => setTyped({ ...typed, Desc })} />
    <${Picker} label="Members" test="member" value=${chosen} onValue=${choose} options=${users.map((user) => [user.UID, user.User])} />
  <//>`;
}

async function erase(group) {
  const text = `Members of ${group.Name} lose access to objects shared with the group. No user is deleted. You cannot undo this.`;
  if (await confirm({ title: `Delete group ${group.Name}?`, text })) {
    await attempt(() => remove(`/api/groups/${group.GID}`), `Group ${group.Name} was deleted.`);
  }
}

export function Groups({ me }) {
  const live = useLive('/api/groups', ['groups']);
  const { users } = usePeople();
  const [edited, setEdited] = useState(null);
  const create = me.Admin && html`<button class="primary" data-test="create-group" onClick=${() => setEdited({})}>New group</button>`;
  const actions = {
    title: 'Actions',
    kind: 'actions',
    cell: (group) => html`<button data-test="edit" onClick=${() => setEdited(group)}>Edit</button>
      <button class="danger" data-test="delete" onClick=${() => erase(group)}>Delete</button>`,
  };
  const columns = [
    { title: 'Group', cell: (group) => html`<b>${group.Name}</b> <${Pending} of=${group} />` },
    { title: 'Description', kind: 'wide', cell: (group) => group.Desc || '–' },
    {
      title: 'Members',
      cell: (group) => {
        const found = members(users, group.GID);
        return found.length > 0 ? found.map((user) => html`<${Badge} key=${user.UID}>${user.User}<//> `) : '–';
      },
    },
    ...(me.Admin ? [actions] : []),
  ];
  const empty = `There are no groups yet. You can share dashboards and resources with groups.${me.Admin ? ' Select New group to create one.' : ''}`;
  return html`<${Page} title="Groups" actions=${create}>
    <${Loaded} live=${live}>
      <${Table} label="Groups" columns=${columns} rows=${live.data ?? []} keyOf=${(group) => group.GID} nameOf=${(group) => group.Name} empty=${empty} />
    <//>
    ${edited && html`<${GroupForm} group=${edited.GID === undefined ? undefined : edited} onClose=${() => setEdited(null)} />`}
  <//>`;
}
