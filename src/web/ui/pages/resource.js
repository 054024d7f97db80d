// The page of a resource: details, sharing and contents.
import { html, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { onlyIf, send } from '../lib/api.js';
import { useDraft } from '../lib/draft.js';
import { words } from '../lib/fields.js';
import { useLive } from '../lib/live.js';
import { usePeople, withGone } from '../lib/people.js';
import { Preview } from '../lib/preview.js';
import { DropZone, uploadContents } from '../lib/uploads.js';
import { Area, Bytes, Check, Facts, Field, Loaded, Page, Pending, Picker, Time, toast } from '../lib/ui.js';
import { CloneResource, eraseResource } from './resources.js';

function understood({ text, etag }) {
  const resource = JSON.parse(text);
  const { ResourceName, Description, Labels, GroupACL, Global } = resource;
  return { resource, etag, fields: { ResourceName, Description, Labels: Labels.join(', '), GroupACL, Global } };
}

const read = async (path) => understood(await send('GET', path));

function Form({ me, draft, path, mayWrite }) {
  const { groupOptions } = usePeople();
  const [failure, setFailure] = useState('');
  const { fields, set } = draft;
  const submit = async (event) => {
    event.preventDefault();
    setFailure('');
    try {
      await draft.save(async (mine, base, etag) => {
        const body = { ...mine, Labels: words(mine.Labels) };
        return understood(await send('PUT', path, { ...onlyIf(etag), body }));
      });
      toast('Saved.');
    } catch (error) {
      setFailure(error.message);
    }
  };
  return html`<form onSubmit=${submit}>
    ${draft.bar}
    <fieldset class="bare" disabled=${!mayWrite}>
      <div class="fields">
        <${Field} name="ResourceName" label="Name" value=${fields.ResourceName} onValue=${(ResourceName) => set({ ResourceName })} required autocomplete="off" />
        <${Area} name="Description" label="Description" rows="3" value=${fields.Description} onValue=${(Description) => set({ Description })} />
        <${Field} name="Labels" label="Labels" hint="Separate labels with commas." value=${fields.Labels} onValue=${(Labels) => set({ Labels })} autocomplete="off" />
        <${Check} name="Global" label="All users can use it" value=${fields.Global} disabled=${!me.Admin} hint=${me.Admin ? '' : '(set by administrators)'} onValue=${(Global) => set({ Global })} />
        <${Picker} label="Groups that can use it" test="share-read" value=${fields.GroupACL} options=${withGone(groupOptions, fields.GroupACL)} none="There are no groups to share with yet." onValue=${(GroupACL) => set({ GroupACL })} />
      </div>
    </fieldset>
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    ${mayWrite &&
    html`<footer class="form-foot">
      <button type="submit" class="primary" data-test="save" disabled=${!draft.isDirty}>Save</button>
      ${draft.discard}
    </footer>`}
  </form>`;
}

export function Resource({ me, guid }) {
  const path = `/api/resources/${guid}`;
  const live = useLive(path, ['resources', 'memberships'], { read });
  const draft = useDraft(path, live.data, () => read(path));
  const people = usePeople();
  const [isCloning, setCloning] = useState(false);
  // Kept after the resource was deleted, so that the user's edits remain visible.
  const last = useRef(null);
  if (live.data) last.current = live.data.resource;
  const resource = last.current;
  const back = { href: '#/resources', text: 'Resources' };
  if (!resource || !draft) return html`<${Page} title="Resource" back=${back}><${Loaded} live=${live} /><//>`;

  const mayWrite = me.Admin || resource.UID === me.UID;
  const erase = async () => {
    if (await eraseResource(resource)) location.hash = '#/resources';
  };
  const actions = html`<a class="button" data-test="download" href=${`${path}/raw`} download=${resource.ResourceName}>Download</a>
    <button data-test="clone" onClick=${() => setCloning(true)}>Clone</button>
    ${mayWrite && html`<button class="danger" data-test="delete" onClick=${erase}>Delete</button>`}`;
  return html`<${Page} title=${resource.ResourceName} back=${back} actions=${actions}>
    ${live.error && html`<p class="failure" role="alert">${live.error.message}</p>`}
    <div class="cards">
      <section class="card">
        <header class="card-head"><h2>Details</h2><${Pending} of=${resource} /></header>
        <${Form} me=${me} draft=${draft} path=${path} mayWrite=${mayWrite} />
      </section>
      <section class="card">
        <h2>Contents</h2>
        <${Facts} of=${[
          ['Version', html`<span data-test="version">${resource.VersionNumber}</span>`],
          ['Size', html`<${Bytes} of=${resource.Size} />`],
          ['Hash (MD5)', resource.Hash ? html`<code>${resource.Hash}</code>` : '–'],
          ['Changed', html`<${Time} at=${resource.LastModified} />`],
          ['Owner', people.user(resource.UID)],
          ['GUID', html`<code>${resource.GUID}</code>`],
        ]} />
        ${mayWrite && html`<${DropZone} text="A new file replaces the current contents." onFile=${(file) => uploadContents(guid, resource.ResourceName, file)} />`}
      </section>
    </div>
    <section class="card">
      <h2>Preview</h2>
      <${Preview} guid=${guid} size=${resource.Size} version=${resource.Hash} />
    </section>
    ${isCloning && html`<${CloneResource} resource=${resource} onClose=${() => setCloning(false)} />`}
  <//>`;
}
