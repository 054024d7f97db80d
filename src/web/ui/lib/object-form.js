// The form of an object with an owner: details, sharing, and contents of its kind.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { words } from './fields.js';
import { Sharing } from './sharing.js';
import { Area, Field, Pending } from './ui.js';

/** The fields of a new object, without those of its kind. */
export const EMPTY = { Name: '', Description: '', Labels: '', GIDs: [], Global: false, WriteGIDs: [], WriteGlobal: false };

/** The members of a request with these fields; `description` is the name of the description there. */
export const commonMembers = (fields, description = 'Description') => ({
  Name: fields.Name,
  [description]: fields.Description,
  Labels: words(fields.Labels),
  GIDs: fields.GIDs,
  Global: fields.Global,
  WriteAccess: { Global: fields.WriteGlobal, GIDs: fields.WriteGIDs },
});

/** `children` are the contents; with `isWrong` they cannot be saved. `about` is shown below the details. */
export function ObjectForm({ me, fields, set, save, canSave, verb, bar, discard, head, mayWrite, isOwner, about, nameHint, isWrong, children }) {
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
            <${Field} name="Name" label="Name" hint=${nameHint} value=${fields.Name} onValue=${(Name) => set({ Name })} required autocomplete="off" />
            <${Area} name="Description" label="Description" rows="3" value=${fields.Description} onValue=${(Description) => set({ Description })} />
            <${Field} name="Labels" label="Labels" hint="Separate labels with commas." value=${fields.Labels} onValue=${(Labels) => set({ Labels })} autocomplete="off" />
          </div>
          ${about}
        </section>
        <${Sharing} me=${me} fields=${fields} set=${set} isOwner=${isOwner} />
      </div>
      <section class="card">${children}</section>
    </fieldset>
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    ${mayWrite &&
    html`<footer class="form-foot">
      <button type="submit" class="primary" data-test="save" disabled=${!canSave || isWrong}>${verb}</button>
      ${discard}
      ${isWrong && html`<span class="hint">Correct the contents to save.</span>`}
    </footer>`}
  </form>`;
}
