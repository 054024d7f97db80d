// The page of one object of a kind: details, sharing and contents.
import { html, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { onlyIf, send } from '../lib/api.js';
import { useDraft } from '../lib/draft.js';
import { indented, members, spliced } from '../lib/json.js';
import { JsonArea, isObject, jsonFault } from '../lib/json-area.js';
import { KINDS } from '../lib/kinds.js';
import { useLive } from '../lib/live.js';
import { EMPTY, ObjectForm, commonMembers } from '../lib/object-form.js';
import { usePeople } from '../lib/people.js';
import { Area, Check, Facts, Loaded, Page, Time, toast } from '../lib/ui.js';
import { eraseOwned } from './owned-list.js';

const textOf = (base64) => new TextDecoder().decode(Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)));
const base64Of = (text) => btoa([...new TextEncoder().encode(text)].map((byte) => String.fromCharCode(byte)).join(''));

function shownField({ name, form, empty }, head, raw) {
  if (form === 'json') return indented(raw.get(name) ?? empty);
  return form === 'base64' ? textOf(head[name] ?? '') : (head[name] ?? empty);
}

/** Parses an object. JSON remains text, so that its numbers keep their exact digits. */
const understood = (spec) => ({ text, etag }) => {
  const raw = members(text);
  const head = JSON.parse(text);
  const fields = {
    Name: head.Name,
    Description: head[spec.description],
    Labels: head.Labels.join(', '),
    GIDs: head.GIDs,
    Global: head.Global,
    WriteGIDs: head.WriteAccess.GIDs,
    WriteGlobal: head.WriteAccess.Global,
  };
  for (const field of spec.fields) fields[field.name] = shownField(field, head, raw);
  return { head, etag, fields };
};

function bodyOf(spec, fields, base) {
  const plain = commonMembers(fields, spec.description);
  const json = {};
  // Unchanged contents are not sent, so that the stored text keeps its whitespace.
  for (const { name, form } of spec.fields.filter((field) => fields[field.name] !== base?.[field.name])) {
    if (form === 'json') json[name] = fields[name];
    else plain[name] = form === 'base64' ? base64Of(fields[name]) : fields[name];
  }
  return spliced(plain, json);
}

async function create(spec, kind, fields) {
  const made = JSON.parse((await send('POST', spec.path, { body: bodyOf(spec, fields) })).text);
  toast(`The ${spec.one} ${fields.Name} was created.`);
  location.hash = `#/${kind}/${made?.[spec.id] ?? made}`;
}

function Contents({ field, fields, set, problem, readonly }) {
  const { name, label, form, rows } = field;
  const props = { name, label, value: fields[name], onValue: (value) => set({ [name]: value }) };
  if (form === 'flag') return html`<${Check} ...${props} />`;
  if (form === 'json') return html`<${JsonArea} ...${props} rows=${rows} problem=${problem} readonly=${readonly} />`;
  return html`<${Area} ...${props} rows=${rows} code=${form === 'text'} />`;
}

function Form({ spec, ...props }) {
  const { fields, set, head, mayWrite } = props;
  const problemOf = ({ name, form }) => (form === 'json' ? jsonFault(fields[name], isObject) : null);
  const problems = spec.fields.map(problemOf);
  const isWrong = problems.some((problem) => problem !== null);
  return html`<${ObjectForm} ...${props} nameHint=${spec.nameHint} isWrong=${isWrong} about=${head && html`<${About} spec=${spec} head=${head} />`}>
    <div class="fields">
      ${spec.fields.map((field, place) => html`<${Contents} key=${field.name} field=${field} fields=${fields} set=${set} problem=${problems[place]} readonly=${!mayWrite} />`)}
    </div>
  <//>`;
}

function About({ spec, head }) {
  const people = usePeople();
  return html`<${Facts} of=${[
    ['Owner', people.user(head.UID)],
    ['Updated', html`<${Time} at=${head[spec.updated]} />`],
    ['GUID', html`<code>${head.GUID}</code>`],
  ]} />`;
}

function NewObject({ me, kind, spec }) {
  const [blank] = useState(() => ({ fields: { ...EMPTY, ...Object.fromEntries(spec.fields.map(({ name, empty }) => [name, empty])) }, etag: null }));
  // A draft, so that edits are kept while the user visits other pages.
  const draft = useDraft(`${spec.path}/new`, blank, async () => blank);
  if (draft === null) return null;
  const save = () =>
    draft.save(async (fields) => {
      await create(spec, kind, fields);
      return blank;
    });
  return html`<${Page} title=${`New ${spec.one}`} back=${{ href: `#/${kind}`, text: spec.title }}>
    <${Form} me=${me} spec=${spec} fields=${draft.fields} set=${draft.set} save=${save} canSave=${true} verb="Create" discard=${draft.discard} mayWrite=${true} isOwner=${true} />
  <//>`;
}

/** Shown when the edited object no longer exists; the edits are kept. */
const Gone = ({ kind, spec, draft }) => html`<div class="note note-warn" role="alert" data-test="gone">
  <p>This ${spec.one} was deleted or is no longer shared with you. Your unsaved copy exists only in this tab.</p>
  <div class="actions"><button type="button" onClick=${() => create(spec, kind, draft.fields).catch((error) => toast(error.message, 'error'))}>Save as new ${spec.one}</button></div>
</div>`;

export function OwnedObject({ me, kind, id }) {
  const spec = KINDS[kind];
  if (id === 'new') return html`<${NewObject} me=${me} kind=${kind} spec=${spec} />`;
  return html`<${Existing} me=${me} kind=${kind} spec=${spec} id=${id} />`;
}

function Existing({ me, kind, spec, id }) {
  const path = `${spec.path}/${id}`;
  const read = async (from) => understood(spec)(await send('GET', from));
  const live = useLive(path, [kind, 'memberships'], { read });
  const draft = useDraft(path, live.data, () => read(path));
  const last = useRef(null);
  if (live.data) last.current = live.data.head;
  const head = last.current;
  const back = { href: `#/${kind}`, text: spec.title };
  if (!draft || !head) return html`<${Page} title=${spec.title} back=${back}><${Loaded} live=${live} /><//>`;

  const isGone = live.error?.status === 404;
  const save = async () => {
    await draft.save(async (fields, base, etag) => understood(spec)(await send('PUT', path, { ...onlyIf(etag), body: bodyOf(spec, fields, base) })));
    toast('Saved.');
  };
  const erase = async () => {
    if (await eraseOwned(spec, head)) location.hash = `#/${kind}`;
  };
  const actions = !isGone && head.Can.Delete && html`<button class="danger" data-test="delete" onClick=${erase}>Delete</button>`;
  return html`<${Page} title=${head.Name || spec.title} back=${back} actions=${actions}>
    ${live.error && !isGone && html`<p class="failure" role="alert">${live.error.message}</p>`}
    <${Form} me=${me} spec=${spec} head=${head} fields=${draft.fields} set=${draft.set} save=${save} canSave=${draft.isDirty && !isGone} verb="Save" discard=${draft.discard} bar=${isGone ? html`<${Gone} kind=${kind} spec=${spec} draft=${draft} />` : draft.bar} mayWrite=${head.Can.Modify} isOwner=${head.Can.Share} />
  <//>`;
}
