// With whom an object is shared: as shown in lists, and as a part of forms.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { usePeople, withGone } from './people.js';
import { Badge, Check, Picker } from './ui.js';

/** The groups that may see an object with `GIDs`, `Global` and `WriteAccess`. */
export function Audience({ of, people }) {
  const groups = [...new Set([...of.GIDs, ...(of.WriteAccess.GIDs ?? [])])];
  if (!of.Global && !of.WriteAccess.Global && groups.length === 0) return html`<span class="faint">not shared</span>`;
  const mayWrite = (gid) => of.WriteAccess.GIDs?.includes(gid);
  return html`<span class="badges">
    ${(of.Global || of.WriteAccess.Global) && html`<${Badge} kind="info">all users${of.WriteAccess.Global ? ', can edit' : ''}<//>`}
    ${groups.map((gid) => html`<${Badge} key=${gid}>${people.group(gid)}${mayWrite(gid) ? ', can edit' : ''}<//>`)}
  </span>`;
}

/** The card of a form with `GIDs`, `Global`, `WriteGIDs` and `WriteGlobal`. */
export function Sharing({ me, fields, set, isOwner }) {
  const { groupOptions } = usePeople();
  const chosen = [...fields.GIDs, ...fields.WriteGIDs];
  const options = withGone(groupOptions, [...new Set(chosen)]);
  const none = 'There are no groups to share with yet.';
  return html`<section class="card">
    <h2>Sharing</h2>
    ${!isOwner && html`<p class="hint">Only the owner and administrators can change this.</p>`}
    <div class="fields">
      <${Check} name="Global" label="All users can view it" value=${fields.Global} disabled=${!me.Admin} hint=${me.Admin ? '' : '(set by administrators)'} onValue=${(Global) => set({ Global })} />
      <${Check} name="WriteGlobal" label="All users can edit it" value=${fields.WriteGlobal} disabled=${!me.Admin} hint=${me.Admin ? '' : '(set by administrators)'} onValue=${(WriteGlobal) => set({ WriteGlobal })} />
      <${Picker} label="Groups that can view it" test="share-read" value=${fields.GIDs} options=${options} none=${none} disabled=${!isOwner} onValue=${(GIDs) => set({ GIDs })} />
      <${Picker} label="Groups that can edit it" test="share-write" value=${fields.WriteGIDs} options=${options} none=${none} disabled=${!isOwner} onValue=${(WriteGIDs) => set({ WriteGIDs })} />
    </div>
  </section>`;
}
