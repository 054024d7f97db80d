// The form that signs in.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { signIn } from '../lib/session.js';
import { Field } from '../lib/ui.js';

export function SignIn() {
  const [user, setUser] = useState('');
  const [pass, setPass] = useState('');
  const [failure, setFailure] = useState('');
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    document.title = 'Sign in – Gravwell';
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure('');
    try {
      await signIn(user, pass);
    } catch (error) {
      setFailure(error.message);
      setBusy(false);
    }
  };
  return html`<main class="door">
    <form class="card" onSubmit=${submit}>
      <h1>Gravwell</h1>
      <${Field} name="user" test="user" label="User name" value=${user} onValue=${setUser} required autofocus autocomplete="username" autocapitalize="none" spellcheck="false" />
      <${Field} name="pass" test="pass" label="Password" type="password" value=${pass} onValue=${setPass} required autocomplete="current-password" />
      ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
      <button type="submit" class="primary" data-test="sign-in" disabled=${busy}>${busy ? 'Signing in …' : 'Sign in'}</button>
    </form>
  </main>`;
}
