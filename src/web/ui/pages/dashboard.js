// The page of a dashboard: details, sharing and contents as JSON.
import { html, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { onlyIf, send } from '../lib/api.js';
import { useDraft } from '../lib/draft.js';
import { words } from '../lib/fields.js';
import { indented, members, spliced } from '../lib/json.js';
import { JsonArea, isObject, useJsonFault } from '../lib/json-area.js';
import { useLive } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Sharing } from '../lib/sharing.js';
import { Area, Facts, Field, Loaded, Page, Pending, Time, toast } from '../lib/ui.js';
import { cloneDashboard, eraseDashboard } from './dashboards.js';

const EMPTY = { Name: '', Description: '', Labels: '', Data: '{}', GIDs: [], Global: false, WriteGIDs: [], WriteGlobal: false };
const NEW = { fields: EMPTY, etag: null };

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
  const plain = {
    Name: fields.Name,
    Description: fields.Description,
    Labels: words(fields.Labels),
    GIDs: fields.GIDs,
    Global: fields.Global,
    WriteAccess: { Global: fields.WriteGlobal, GIDs: fields.WriteGIDs },
  };
  // Unchanged contents are not sent, so that the stored text keeps its whitespace.
  return spliced(plain, fields.Data === base?.Data ? {} : { Data: fields.Data });
}

async function create(fields) {
  const { text } = await send('POST', '/api/dashboards', { body: bodyOf(fields) });
  toast(`Dashboard ${fields.Name} was created.`);
  location.hash = `#/dashboards/${text.trim()}`;
}

function Form({ me, fields, set, save, canSave, verb, bar, discard, head, mayWrite, isOwner }) {
  const problem = useJsonFault(fields.Data, isObject);
  const [failure, setFailure] = useState('');
  const submit = async (event) => {
    event.preventDefault();
    setFailure('');
    try {
      await save();
    } catch (error) {
      setFailure(error.message);
    }
  };
  return html`<form onSubmit=${submit}>
    ${bar}
    <fieldset class="bare" disabled=${!mayWrite}>
      <div class="cards">
        <section class="card">
          <header class="card-head"><h2>Details</h2>${head && html`<${Pending} of=${head} />`}</header>
          <div class="fields">
            <${Field} name="Name" label="Name" value=${fields.Name} onValue=${(Name) => set({ Name })} required autocomplete="off" />
            <${Area} name="Description" label="Description" rows="3" value=${fields.Description} onValue=${(Description) => set({ Description })} />
            <${Field} name="Labels" label="Labels" hint="Separate labels with commas." value=${fields.Labels} onValue=${(Labels) => set({ Labels })} autocomplete="off" />
          </div>
          ${head && html`<${About} head=${head} />`}
        </section>
        <${Sharing} me=${me} fields=${fields} set=${set} isOwner=${isOwner} />
      </div>
      <section class="card">
        <${JsonArea} name="Data" label="Contents (JSON)" value=${fields.Data} onValue=${(Data) => set({ Data })} problem=${problem} />
      </section>
    </fieldset>
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    ${mayWrite &&
    html`<footer class="form-foot">
      <button type="submit" class="primary" data-test="save" disabled=${!canSave || problem !== null}>${verb}</button>
      ${discard}
      ${problem && html`<span class="hint">Correct the contents to save.</span>`}
    </footer>`}
  </form>`;
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
