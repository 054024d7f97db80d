// What one may change of one's own account.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { OwnPassword } from '../lib/password.js';
import { remove } from '../lib/api.js';
import { signOut } from '../lib/session.js';
import { Sessions } from '../lib/sessions.js';
import { UserForm, useUser } from '../lib/user-form.js';
import { Badge, Facts, Loaded, Page, Pending, attempt, confirm, toast } from '../lib/ui.js';

async function signOutEverywhere() {
  const text = 'All your sessions end, on every webserver and in every browser, also this one. API tokens go on.';
  if (!(await confirm({ title: 'Sign out everywhere?', text, verb: 'Sign out everywhere' }))) return;
  if (await attempt(() => remove('/api/logout'))) await attempt(signOut);
}

export function Profile({ me }) {
  const live = useUser(me.UID);
  const user = live.data?.user;
  return html`<${Page} title="Profile">
    <${Loaded} live=${live}>
      ${user &&
      html`<div class="cards">
          <section class="card">
            <header class="card-head"><h2>You</h2><${Pending} of=${user} /></header>
            <${UserForm} loaded=${live.data} />
            <${Facts} of=${[
              ['Role', user.Admin ? 'administrator' : 'user'],
              ['Groups', user.Groups.length > 0 ? user.Groups.map((group) => html`<${Badge} key=${group.GID}>${group.Name}<//> `) : 'none'],
              ['Number', user.UID],
            ]} />
          </section>
          <section class="card">
            <h2>Password</h2>
            <p class="hint">Your other sessions end when you change it.</p>
            <${OwnPassword} uid=${user.UID} onDone=${() => toast('Your password was changed.')} />
          </section>
        </div>
        <header class="section-head">
          <h2>Sessions</h2>
          <button data-test="sign-out-everywhere" onClick=${signOutEverywhere}>Sign out everywhere</button>
        </header>
        <${Sessions} uid=${user.UID} />`}
    <//>
  <//>`;
}
