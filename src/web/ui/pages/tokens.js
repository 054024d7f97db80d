// API tokens: secrets that programs use to act as their owner.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { patch, post, put, remove } from '../lib/api.js';
import { useAllUsers } from '../lib/all-users.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Area, Badge, Dialog, Field, FormDialog, Loaded, Page, Picker, Table, Time, attempt, confirm, isNever, toast } from '../lib/ui.js';

const NEVER = '0001-01-01T00:00:00Z';

/** Formats a timestamp for a datetime-local input: local time without a zone. */
function asLocal(time) {
  if (isNever(time)) return '';
  const date = new Date(time);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

const asTime = (local) => (local ? new Date(local).toISOString() : NEVER);
const isOver = (token) => !isNever(token.expiresAt) && new Date(token.expiresAt) < new Date();

function TokenForm({ token, onSecret, onClose }) {
  const known = useLive('/api/tokens/capabilities', []).data ?? [];
  const [typed, setTyped] = useState({
    name: token?.name ?? '',
    description: token?.description ?? '',
    expiresAt: asLocal(token?.expiresAt),
    capabilities: token?.capabilities ?? [],
  });
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const action = async () => {
    // An unchanged time keeps its seconds, which the input does not show.
    const isSame = token && typed.expiresAt === asLocal(token.expiresAt);
    const body = { ...typed, expiresAt: isSame ? token.expiresAt : asTime(typed.expiresAt) };
    if (token) {
      await put(`/api/tokens/${token.id}`, body);
      toast('Saved.');
    } else {
      onSecret(await post('/api/tokens', body));
    }
  };
  return html`<${FormDialog} title=${token ? `Token ${token.name}` : 'New token'} verb=${token ? 'Save' : 'Create'} wide=${true} action=${action} onClose=${onClose}>
    <${Field} name="name" label="Name" value=${typed.name} onValue=${set('name')} required autocomplete="off" />
    <${Area} name="description" label="Description" rows="2" value=${typed.description} onValue=${set('description')} />
    <${Field} name="expiresAt" label="Expires" type="datetime-local" value=${typed.expiresAt} onValue=${set('expiresAt')} hint="Leave empty for a token that never expires." />
    <${Picker} label="Capabilities" test="capability" value=${typed.capabilities} onValue=${set('capabilities')} options=${known.map((name) => [name, name])} />
  <//>`;
}

/** Shows the value of a token once; the webserver stores only its hash. */
function Secret({ token, onClose }) {
  const copy = () => attempt(() => navigator.clipboard.writeText(token.token), 'Copied.');
  return html`<${Dialog} title=${`Value of ${token.name}`} onClose=${onClose}>
    <p class="prose">Copy the value now: it is not shown again, and you cannot retrieve it later.</p>
    <pre class="code secret" tabindex="0" data-test="token-value">${token.token}</pre>
    <p class="hint">Programs send the value in the header <code>Gravwell-Token</code>.</p>
    <footer>
      ${navigator.clipboard && html`<button data-test="copy" onClick=${copy}>Copy</button>`}
      <button class="primary" data-test="done" onClick=${onClose}>Done</button>
    </footer>
  <//>`;
}

export function Tokens({ me }) {
  const [query, allUsers] = useAllUsers(me);
  const live = useLive(`/api/tokens${query}`, ['tokens']);
  const people = usePeople();
  const [edited, setEdited] = useState(null);
  const [secret, setSecret] = useState(null);
  const renew = async (token) => {
    const text = 'The token gets a new value. Programs that use the current value lose access.';
    if (!(await confirm({ title: `Renew token ${token.name}?`, text, verb: 'Renew' }))) return;
    await attempt(async () => setSecret(await patch(`/api/tokens/${token.id}`, { expiresAt: isOver(token) ? NEVER : token.expiresAt })));
  };
  const erase = async (token) => {
    const text = 'Programs that use this token lose access on all webservers. You cannot undo this.';
    if (await confirm({ title: `Delete token ${token.name}?`, text })) await attempt(() => remove(`/api/tokens/${token.id}`), `Token ${token.name} was deleted.`);
  };
  const columns = [
    { title: 'Token', kind: 'wide', cell: (token) => html`<b>${token.name || '(no name)'}</b>${token.description && html`<p class="hint">${token.description}</p>`}` },
    { title: 'Owner', cell: (token) => people.user(token.uid) },
    {
      title: 'Capabilities',
      cell: (token) =>
        token.capabilities.length > 4
          ? html`<span title=${token.capabilities.join(', ')}>${token.capabilities.length} capabilities</span>`
          : token.capabilities.length > 0
            ? token.capabilities.map((name) => html`<${Badge} key=${name}>${name}<//> `)
            : html`<span class="faint">none</span>`,
    },
    { title: 'Created', cell: (token) => html`<${Time} at=${token.createdAt} />` },
    { title: 'Expires', cell: (token) => html`<${Time} at=${token.expiresAt} /> ${isOver(token) && html`<${Badge} kind="error">expired<//>`}` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (token) => html`<button data-test="edit" onClick=${() => setEdited(token)}>Edit</button>
        <button data-test="renew" onClick=${() => renew(token)}>Renew</button>
        <button class="danger" data-test="delete" onClick=${() => erase(token)}>Delete</button>`,
    },
  ];
  const actions = html`<button class="primary" data-test="create-token" onClick=${() => setEdited({})}>New token</button>`;
  return html`<${Page} title="API tokens" actions=${actions}>
    <${Loaded} live=${live}>
      ${allUsers && html`<div class="filters">${allUsers}</div>`}
      <${Table} label="API tokens" columns=${columns} rows=${live.data ?? []} keyOf=${(token) => token.id} nameOf=${(token) => token.name} empty="There are no tokens yet. Select New token to create one for a program that acts on your behalf." />
    <//>
    ${edited && html`<${TokenForm} token=${edited.id ? edited : undefined} onSecret=${setSecret} onClose=${() => setEdited(null)} />`}
    ${secret && html`<${Secret} token=${secret} onClose=${() => setSecret(null)} />`}
  <//>`;
}
