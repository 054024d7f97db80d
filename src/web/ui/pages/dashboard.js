// The page of a dashboard: details, sharing and contents as JSON.
import { html, useRef } from '../vendor/htm-preact-standalone.module.js';
import { onlyIf, send } from '../lib/api.js';
import { useDraft } from '../lib/draft.js';
import { indented, members, spliced } from '../lib/json.js';
import { JsonArea, isObject, useJsonFault } from '../lib/json-area.js';
import { useLive } from '../lib/live.js';
import { EMPTY, ObjectForm, commonMembers } from '../lib/object-form.js';
import { usePeople } from '../lib/people.js';
import { Facts, Loaded, Page, Time, toast } from '../lib/ui.js';
import { cloneDashboard, eraseDashboard } from './dashboards.js';

const NEW = { fields: { ...EMPTY, Data: '{}' }, etag: null };

/** Parses a dashboard. `Data` remains text, so that its numbers keep their exact digits. */
function understood({ text, etag }) {
  const raw = members(text).get('Data') ?? '{}';
  const { Data: _, ...head } = JSON.parse(text);
  const { Name, Description, Labels, GIDs, Global, WriteAccess } = head;
  const fields = { Name, Description, Labels: Labels.join(', '), Data: indented(raw), GIDs, Global, WriteGIDs: WriteAccess.GIDs ?? [], WriteGlobal: WriteAccess.Global };
  return { head, etag, fields };
}

const read = async (path) => understood(await send('GET', path));

function bodyOf(fields, base) {
  const plain = commonMembers(fields);
  // Unchanged contents are not sent, so that the stored text keeps its whitespace.
  return spliced(plain, fields.Data === base?.Data ? {} : { Data: fields.Data });
}

async function create(fields) {
  const { text } = await send('POST', '/api/dashboards', { body: bodyOf(fields) });
  toast(`Dashboard ${fields.Name} was created.`);
  location.hash = `#/dashboards/${text.trim()}`;
}

function Form(props) {
  const { fields, set, head } = props;
  const problem = useJsonFault(fields.Data, isObject);
  return html`<${ObjectForm} ...${props} isWrong=${problem !== null} about=${head && html`<${About} head=${head} />`}>
    <${JsonArea} name="Data" label="Contents (JSON)" value=${fields.Data} onValue=${(Data) => set({ Data })} problem=${problem} />
  <//>`;
}

function About({ head }) {
  const people = usePeople();
  return html`<${Facts} of=${[
    ['Owner', people.user(head.UID)],
    ['Updated', html`<${Time} at=${head.Updated} />`],
    ['Created', html`<${Time} at=${head.Created} />`],
    head.GUID && ['GUID', html`<code>${head.GUID}</code>`],
  ]} />`;
}

function NewDashboard({ me }) {
  // A draft, so that edits are kept while the user visits other pages.
  const draft = useDraft('/api/dashboards/new', NEW, async () => NEW);
  if (draft === null) return null;
  const save = () =>
    draft.save(async (fields) => {
      await create(fields);
      return NEW;
    });
  return html`<${Page} title="New dashboard" back=${{ href: '#/dashboards', text: 'Dashboards' }}>
    <${Form} me=${me} fields=${draft.fields} set=${draft.set} save=${save} canSave=${true} verb="Create" discard=${draft.discard} mayWrite=${true} isOwner=${true} />
  <//>`;
}

/** Shown when the edited dashboard no longer exists; the edits are kept. */
const Gone = ({ draft }) => html`<div class="note note-warn" role="alert" data-test="gone">
  <p>This dashboard was deleted or is no longer shared with you. Your unsaved copy exists only in this tab.</p>
  <div class="actions"><button type="button" onClick=${() => create(draft.fields).catch((error) => toast(error.message, 'error'))}>Save as new dashboard</button></div>
</div>`;

export function Dashboard({ me, id }) {
  if (id === 'new') return html`<${NewDashboard} me=${me} />`;
  return html`<${Existing} me=${me} id=${id} />`;
}

function Existing({ me, id }) {
  const path = `/api/dashboards/${id}`;
  const live = useLive(path, ['dashboards', 'memberships'], { read });
  const draft = useDraft(path, live.data, () => read(path));
  const last = useRef(null);
  if (live.data) last.current = live.data.head;
  const head = last.current;
  const back = { href: '#/dashboards', text: 'Dashboards' };
  if (!draft || !head) return html`<${Page} title="Dashboard" back=${back}><${Loaded} live=${live} /><//>`;

  const isOwner = me.Admin || head.UID === me.UID;
  const groups = me.Groups.map((group) => group.GID);
  const isWriter = head.WriteAccess.Global || head.WriteAccess.GIDs?.some((gid) => groups.includes(gid));
  const isGone = live.error?.status === 404;
  const save = async () => {
    await draft.save(async (fields, base, etag) => understood(await send('PUT', path, { ...onlyIf(etag), body: bodyOf(fields, base) })));
    toast('Saved.');
  };
  const erase = async () => {
    if (await eraseDashboard(head)) location.hash = '#/dashboards';
  };
  const actions = !isGone && html`<button data-test="clone" onClick=${() => cloneDashboard(head)}>Clone</button>
    ${isOwner && html`<button class="danger" data-test="delete" onClick=${erase}>Delete</button>`}`;
  return html`<${Page} title=${head.Name || 'Dashboard'} back=${back} actions=${actions}>
    ${live.error && !isGone && html`<p class="failure" role="alert">${live.error.message}</p>`}
    <${Form} me=${me} head=${head} fields=${draft.fields} set=${draft.set} save=${save} canSave=${draft.isDirty && !isGone} verb="Save" discard=${draft.discard} bar=${isGone ? html`<${Gone} draft=${draft} />` : draft.bar} mayWrite=${isOwner || isWriter} isOwner=${isOwner} />
  <//>`;
}
