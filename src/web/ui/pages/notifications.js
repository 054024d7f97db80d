// Messages from users and webservers.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, remove } from '../lib/api.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Area, Badge, Choice, Field, FormDialog, Loaded, Page, Table, Time, attempt, toast } from '../lib/ui.js';

const LEVELS = [['info', 'Information'], ['warn', 'Warning'], ['error', 'Error'], ['critical', 'Critical']];
const KINDS = { info: 'info', warn: 'warn', error: 'error', critical: 'error' };

/** Returns whether a link is a web address: others could run as a script. */
const isSafe = (link) => /^(https?:\/\/|\/(?!\/)|#)/i.test(link);

function NewNotification({ me, onClose }) {
  const people = usePeople();
  const [typed, setTyped] = useState({ To: 'self', UID: '', GID: '', Msg: '', Level: 'info', Link: '' });
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const action = async () => {
    const { To, Msg, Level, Link } = typed;
    const body = { Msg, Level, Link };
    if (To === 'all') await post('/api/notifications/broadcast', body);
    else if (To === 'user') await post('/api/notifications/targeted', { ...body, UID: Number(typed.UID || people.users[0]?.UID) });
    else if (To === 'group') await post('/api/notifications/targeted', { ...body, GID: Number(typed.GID || people.groups[0]?.GID) });
    else await post('/api/notifications/targeted/self', body);
    toast('The notification was sent.');
  };
  const receivers = [['self', 'Yourself'], ...(me.Admin ? [['user', 'A user'], ...(people.groups.length > 0 ? [['group', 'A group']] : []), ['all', 'All users']] : [])];
  return html`<${FormDialog} title="New notification" verb="Send" action=${action} onClose=${onClose}>
    <${Choice} name="To" label="To" value=${typed.To} options=${receivers} onValue=${set('To')} />
    ${typed.To === 'user' && html`<${Choice} name="UID" label="User" value=${typed.UID} options=${people.users.map((user) => [user.UID, user.User])} onValue=${set('UID')} />`}
    ${typed.To === 'group' && html`<${Choice} name="GID" label="Group" value=${typed.GID} options=${people.groupOptions} onValue=${set('GID')} />`}
    <${Area} name="Msg" label="Message" rows="3" value=${typed.Msg} onValue=${set('Msg')} required />
    <${Choice} name="Level" label="Level" value=${typed.Level} options=${LEVELS} onValue=${set('Level')} />
    <${Field} name="Link" label="Link" value=${typed.Link} onValue=${set('Link')} hint="Optional: address with more information." autocomplete="off" />
  <//>`;
}

export function Notifications({ me }) {
  const live = useLive('/api/notifications', ['notifications', 'memberships']);
  const people = usePeople();
  const [isNew, setNew] = useState(false);
  const rows = Object.entries(live.data ?? {}).map(([id, one]) => ({ id, ...one }));
  rows.sort((one, other) => (one.Sent < other.Sent ? 1 : -1));
  const receiver = (one) => {
    if (one.Broadcast) return 'all users';
    return one.GID ? `group ${people.group(one.GID)}` : people.user(one.UID);
  };
  const mayDelete = (one) => me.Admin || one.UID === me.UID;
  const erase = (one) => attempt(() => remove(`/api/notifications/${one.id}`), 'The notification was deleted.').then(live.reload);
  const columns = [
    {
      title: 'Message',
      kind: 'wide',
      cell: (one) => html`${one.Level && html`<${Badge} kind=${KINDS[one.Level] ?? ''}>${one.Level}<//> `}<span class="message">${one.Msg}</span>
        ${one.Link && (isSafe(one.Link) ? html` <a href=${one.Link} rel="noreferrer">${one.Link}</a>` : html` <span class="faint">${one.Link}</span>`)}`,
    },
    { title: 'From', cell: (one) => (one.Sender ? people.user(one.Sender) : 'the webserver') },
    { title: 'To', cell: receiver },
    { title: 'Sent', cell: (one) => html`<${Time} at=${one.Sent} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => (mayDelete(one) ? html`<button data-test="delete" title=${one.UID === me.UID ? '' : 'Deletes the notification for all recipients'} onClick=${() => erase(one)}>Delete</button>` : html`<span class="faint">expires automatically</span>`),
    },
  ];
  const actions = html`<button class="primary" data-test="create-notification" onClick=${() => setNew(true)}>New notification</button>`;
  return html`<${Page} title="Notifications" actions=${actions}>
    <${Loaded} live=${live}>
      <${Table} label="Notifications" columns=${columns} rows=${rows} keyOf=${(one) => one.id} nameOf=${(one) => one.Msg} empty="You have no notifications. Messages to you, to your groups and to all users appear here." />
    <//>
    ${isNew && html`<${NewNotification} me=${me} onClose=${() => setNew(false)} />`}
  <//>`;
}
