// Form for the name and e-mail address of a user, for administrators and for the user.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { onlyIf, send } from './api.js';
import { useDraft } from './draft.js';
import { useLive } from './live.js';
import { USERS } from './people.js';
import { Field, toast } from './ui.js';

// In the API an empty string keeps the value, and a space clears it.
const sent = (text) => (text.trim() === '' ? ' ' : text);

function understood({ text, etag }) {
  const user = JSON.parse(text);
  return { user, etag, fields: { User: user.User, Name: user.Name.trim(), Email: user.Email.trim() } };
}

export const readUser = async (path) => understood(await send('GET', path));

export const useUser = (uid) => useLive(`/api/users/${uid}`, USERS, { read: readUser });

export function UserForm({ loaded }) {
  const path = `/api/users/${loaded.user.UID}`;
  const draft = useDraft(path, loaded, () => readUser(path));
  const [failure, setFailure] = useState('');
  if (draft === null) return null;
  const { User, Name, Email } = draft.fields;
  const submit = async (event) => {
    event.preventDefault();
    setFailure('');
    try {
      await draft.save(async (fields, base, etag) => {
        const body = { User: fields.User, Name: sent(fields.Name), Email: sent(fields.Email) };
        await send('PUT', path, { ...onlyIf(etag), body });
        return readUser(path);
      });
      toast('Saved.');
    } catch (error) {
      setFailure(error.message);
    }
  };
  return html`<form onSubmit=${submit}>
    ${draft.bar}
    <div class="fields">
      <${Field} name="User" label="User name" value=${User} onValue=${(value) => draft.set({ User: value })} required maxlength="128" autocomplete="off" autocapitalize="none" />
      <${Field} name="Name" label="Full name" value=${Name} onValue=${(value) => draft.set({ Name: value })} autocomplete="off" />
      <${Field} name="Email" label="E-mail" type="email" value=${Email} onValue=${(value) => draft.set({ Email: value })} autocomplete="off" />
    </div>
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    <footer class="form-foot">
      <button type="submit" class="primary" data-test="save" disabled=${!draft.isDirty}>Save</button>
      ${draft.discard}
    </footer>
  </form>`;
}
