// The account settings of the signed-in user.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { OwnPassword } from '../lib/password.js';
import { remove } from '../lib/api.js';
import { ClearDialog, NewCodesDialog, SetUpDialog, useSecondFactor } from '../lib/second-factor.js';
import { signOut } from '../lib/session.js';
import { Sessions } from '../lib/sessions.js';
import { UserForm, useUser } from '../lib/user-form.js';
import { Badge, Facts, Loaded, Page, Pending, Time, attempt, confirm, toast } from '../lib/ui.js';

async function signOutEverywhere() {
  const text = 'This ends all your sessions on all webservers and in all browsers, including this one. API tokens stay valid.';
  if (!(await confirm({ title: 'Sign out everywhere?', text, verb: 'Sign out everywhere' }))) return;
  if (await attempt(() => remove('/api/logout'))) await attempt(signOut);
}

function SecondFactor({ user }) {
  const live = useSecondFactor();
  const [open, setOpen] = useState('');
  const close = () => {
    setOpen('');
    live.reload();
  };
  const { UserConfig, MFARequired } = live.data ?? {};
  const isOn = UserConfig?.TOTP.Enabled;
  const left = UserConfig?.RecoveryCodes.Remaining;
  return html`<section class="card">
    <header class="card-head">
      <h2>Second factor</h2>
      ${live.data && html`<${Badge} kind=${isOn ? 'info' : 'warn'} test="second-factor">${isOn ? 'on' : 'off'}<//>`}
    </header>
    <${Loaded} live=${live}>
      <p class="hint">${isOn ? 'You need a code of your app to sign in.' : 'You sign in with your password alone. A code of an app on your phone protects your account if your password is compromised.'}</p>
      ${isOn && html`<${Facts} of=${[['Recovery codes', html`<span data-test="codes-left">${left === 0 ? 'none left' : `${left} left`}</span>`], ['Created', html`<${Time} at=${UserConfig.RecoveryCodes.Generated} />`]]} />`}
      <div class="actions">
        <button data-test="set-up-factor" class=${isOn ? '' : 'primary'} onClick=${() => setOpen('set-up')}>${isOn ? 'Use another app' : 'Set up'}</button>
        ${isOn && html`<button data-test="new-codes" onClick=${() => setOpen('codes')}>New recovery codes</button>`}
        ${isOn && html`<button class="danger" data-test="clear-factor" disabled=${MFARequired} title=${MFARequired ? 'This webserver requires a second factor' : undefined} onClick=${() => setOpen('clear')}>Turn off</button>`}
      </div>
      ${isOn && MFARequired && html`<p class="hint">This webserver requires a second factor, so you cannot turn it off.</p>`}
    <//>
    ${open === 'set-up' && html`<${SetUpDialog} user=${user.User} isSet=${isOn} onClose=${close} />`}
    ${open === 'codes' && html`<${NewCodesDialog} user=${user.User} onClose=${close} />`}
    ${open === 'clear' && html`<${ClearDialog} user=${user.User} onClose=${close} onDone=${() => toast('The second factor was turned off.')} />`}
  </section>`;
}

export function Profile({ me }) {
  const live = useUser(me.UID);
  const user = live.data?.user;
  return html`<${Page} title="Profile">
    <${Loaded} live=${live}>
      ${user &&
      html`<div class="cards">
          <section class="card">
            <header class="card-head"><h2>Account</h2><${Pending} of=${user} /></header>
            <${UserForm} loaded=${live.data} />
            <${Facts} of=${[
              ['Role', user.Admin ? 'administrator' : 'user'],
              ['Groups', user.Groups.length > 0 ? user.Groups.map((group) => html`<${Badge} key=${group.GID}>${group.Name}<//> `) : 'none'],
              ['User ID', user.UID],
            ]} />
          </section>
          <section class="card">
            <h2>Password</h2>
            <p class="hint">Changing your password ends your other sessions.</p>
            <${OwnPassword} uid=${user.UID} onDone=${() => toast('Your password was changed.')} />
          </section>
          <${SecondFactor} user=${user} />
        </div>
        <header class="section-head">
          <h2>Sessions</h2>
          <button data-test="sign-out-everywhere" onClick=${signOutEverywhere}>Sign out everywhere</button>
        </header>
        <${Sessions} uid=${user.UID} />`}
    <//>
  <//>`;
}
