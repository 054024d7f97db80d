// The form that a user with an initial password must complete before using the interface.
import { html, useEffect } from '../vendor/htm-preact-standalone.module.js';
import { OwnPassword } from '../lib/password.js';
import { load, signOut } from '../lib/session.js';
import { attempt } from '../lib/ui.js';

export function MustChange({ me }) {
  useEffect(() => {
    document.title = 'Change your password – Gravwell';
  }, []);
  return html`<main class="door">
    <div class="card">
      <h1>Change your password</h1>
      <p class="prose">You must change the password of <b>${me.User}</b> before you can continue.</p>
      <${OwnPassword} uid=${me.UID} onDone=${load} />
      <button class="plain" data-test="sign-out" onClick=${() => attempt(signOut)}>Sign out</button>
    </div>
  </main>`;
}
