// Form to change the password of the signed-in user.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { put } from './api.js';
import { Field } from './fields.js';
import { TokenChoice, useTokensOf } from './token-choice.js';

/** Calls `onDone` after the password was changed. */
export function OwnPassword({ uid, onDone }) {
  const empty = { OrigPass: '', NewPass: '', Repeated: '' };
  const [typed, setTyped] = useState(empty);
  const [failure, setFailure] = useState('');
  const [busy, setBusy] = useState(false);
  const tokens = useTokensOf(uid);
  const [choice, setChoice] = useState('keep');
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const { OrigPass, NewPass, Repeated } = typed;
  const differs = Repeated !== '' && Repeated !== NewPass;
  const submit = async (event) => {
    event.preventDefault();
    if (Repeated !== NewPass) return;
    setBusy(true);
    setFailure('');
    try {
      await put(`/api/users/${uid}/pwd`, { OrigPass, NewPass, Tokens: choice });
      setTyped(empty);
      await onDone();
    } catch (error) {
      setFailure(error.message);
    }
    setBusy(false);
  };
  return html`<form onSubmit=${submit}>
    <div class="fields">
      <${Field} name="OrigPass" label="Current password" type="password" value=${OrigPass} onValue=${set('OrigPass')} required autocomplete="current-password" />
      <${Field} name="NewPass" label="New password" type="password" value=${NewPass} onValue=${set('NewPass')} required autocomplete="new-password" />
      <${Field} name="Repeated" label="Repeat new password" type="password" value=${Repeated} onValue=${set('Repeated')} required autocomplete="new-password" error=${differs ? 'The passwords differ.' : ''} />
      <${TokenChoice} tokens=${tokens} value=${choice} onValue=${setChoice} />
    </div>
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    <button type="submit" class="primary" data-test="save-password" disabled=${busy || differs}>Change password</button>
  </form>`;
}
