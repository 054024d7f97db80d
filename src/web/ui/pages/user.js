// The page of a user, for administrators.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, put, remove } from '../lib/api.js';
import { useImmediate } from '../lib/live.js';
import { usePeople } from '../lib/people.js';
import { Sessions } from '../lib/sessions.js';
import { TokenChoice, useTokensOf } from '../lib/token-choice.js';
import { UserForm, useUser } from '../lib/user-form.js';
import { Badge, Check, Facts, Field, FormDialog, Loaded, Page, Pending, Picker, Time, attempt, confirm, toast } from '../lib/ui.js';

function SetPassword({ user, onClose }) {
  const [pass, setPass] = useState('');
  const [choice, setChoice] = useState('end');
  const tokens = useTokensOf(user.UID, '?admin=true');
  const action = async () => {
    await put(`/api/users/${user.UID}/pwd`, { NewPass: pass, Tokens: choice });
    toast(`The password of ${user.User} was set, and their sessions were ended.`);
  };
  return html`<${FormDialog} title=${`Password of ${user.User}`} verb="Set password" action=${action} onClose=${onClose}>
    <${Field} name="NewPass" label="New password" type="password" value=${pass} onValue=${setPass} required autocomplete="new-password" hint="Setting a password ends all sessions of this user." />
    <${TokenChoice} tokens=${tokens} value=${choice} onValue=${setChoice} />
  <//>`;
}

async function toggleAdmin(user, on) {
  const path = `/api/users/${user.UID}/admin`;
  await attempt(() => (on ? put(path) : remove(path)), on ? `${user.User} is now an administrator.` : `${user.User} is no longer an administrator.`);
}

async function toggleLock(user) {
  const path = `/api/users/${user.UID}/lock`;
  if (user.Locked) {
    await attempt(() => remove(path), `${user.User} can sign in again.`);
    return;
  }
  const text = `This ends all sessions of ${user.User}, who cannot sign in until you unlock the account. No data is deleted.`;
  if (await confirm({ title: `Lock ${user.User}?`, text, verb: 'Lock' })) await attempt(() => put(path), `${user.User} is locked.`);
}

async function clearFactor(user) {
  const text = `This ends all sessions of ${user.User}, who can then sign in with the password alone until a second factor is set up again. Verify that the request comes from ${user.User}.`;
  const title = `Clear the second factor of ${user.User}?`;
  if (await confirm({ title, text, verb: 'Clear' })) await attempt(() => remove(`/api/users/${user.UID}/mfa/clear`), `The second factor of ${user.User} was cleared.`);
}

async function erase(user) {
  const text = `This deletes ${user.User} from all webservers, with memberships, preferences, search history, tokens and sessions. You cannot undo this.`;
  if (!(await confirm({ title: `Delete ${user.User}?`, text }))) return;
  if (await attempt(() => remove(`/api/users/${user.UID}`), `User ${user.User} was deleted.`)) location.hash = '#/users';
}

/** Membership changes take effect immediately and one by one, so that administrators do not overwrite each other's changes. */
function Memberships({ user, reload }) {
  const { groupOptions } = usePeople();
  const own = user.Groups.map((group) => group.GID);
  const change = async (gids) => {
    const joined = gids.filter((gid) => !own.includes(gid));
    const left = own.filter((gid) => !gids.includes(gid));
    await attempt(async () => {
      if (joined.length > 0) await post(`/api/users/${user.UID}/group`, { GIDs: joined });
      for (const gid of left) await remove(`/api/users/${user.UID}/group/${gid}`);
    });
    await reload();
  };
  const [shown, choose] = useImmediate(own, change);
  return html`<${Picker} label="Groups" test="group" value=${shown} onValue=${choose} options=${groupOptions} none="There are no groups yet." />`;
}

function Role({ user, reload, disabled }) {
  const [shown, choose] = useImmediate(user.Admin, (on) => toggleAdmin(user, on).then(reload));
  return html`<${Check} name="Admin" label="Administrator" hint="can view and change everything" value=${shown} disabled=${disabled} onValue=${choose} />`;
}

export function User({ me, uid }) {
  const live = useUser(uid);
  const [isSetting, setSetting] = useState(false);
  const loaded = live.data;
  const user = loaded?.user;
  const isOwn = me.UID === Number(uid);
  return html`<${Page} title=${user?.User ?? `User ${uid}`} back=${{ href: '#/users', text: 'Users' }}>
    <${Loaded} live=${live}>
      ${user &&
      html`<div class="cards">
          <section class="card">
            <header class="card-head">
              <h2>Account</h2>
              <span class="badges">${user.Locked && html`<${Badge} kind="error" test="is-locked">locked<//>`}<${Pending} of=${user} /></span>
            </header>
            <${UserForm} loaded=${loaded} />
          </section>
          <section class="card">
            <h2>Permissions and access</h2>
            <div class="fields">
              <${Role} user=${user} reload=${live.reload} disabled=${isOwn} />
              <${Memberships} user=${user} reload=${live.reload} />
            </div>
            <${Facts} of=${[
              ['User ID', user.UID],
              ['Last seen', html`<${Time} at=${user.TS} />`],
              ['Second factor', html`<span data-test="second-factor">${user.MFA.TOTP.Enabled ? 'on' : 'off'}</span>`],
            ]} />
            <div class="actions">
              ${isOwn
                ? html`<a class="button" href="#/profile">Your password</a>`
                : html`<button data-test="set-password" onClick=${() => setSetting(true)}>Set password</button>
                    ${user.MFA.TOTP.Enabled && html`<button data-test="clear-factor" onClick=${() => clearFactor(user).then(live.reload)}>Clear second factor</button>`}
                    <button data-test=${user.Locked ? 'unlock' : 'lock'} onClick=${() => toggleLock(user).then(live.reload)}>${user.Locked ? 'Unlock' : 'Lock'}</button>
                    <button class="danger" data-test="delete" onClick=${() => erase(user)}>Delete</button>`}
            </div>
          </section>
        </div>
        <h2>Sessions</h2>
        <${Sessions} uid=${uid} />`}
    <//>
    ${isSetting && html`<${SetPassword} user=${user} onClose=${() => setSetting(false)} />`}
  <//>`;
}
