// The sign-in form.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { CodeField, SetUp, useAction } from '../lib/second-factor.js';
import { load, signIn } from '../lib/session.js';
import { Field } from '../lib/ui.js';

/** On each step, the focus moves to the first field, or to the heading if there is none. */
function Door({ title, children }) {
  const card = useRef(null);
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = `${title === 'Gravwell' ? 'Sign in' : title} – Gravwell`;
    if (!isFirst.current) (card.current.querySelector('input') ?? card.current.querySelector('h1')).focus();
    isFirst.current = false;
  }, [title]);
  return html`<main class="door">
    <div class="card" ref=${card}>
      <h1 tabindex="-1">${title}</h1>
      ${children}
    </div>
  </main>`;
}

export function SignIn() {
  const [user, setUser] = useState('');
  const [pass, setPass] = useState('');
  const [code, setCode] = useState('');
  const [wanted, setWanted] = useState('password');
  const { busy, shown, run } = useAction();
  const submit = (event) => {
    event.preventDefault();
    run(async () => setWanted(await signIn(user, pass, code)));
  };
  const back = () => {
    setWanted('password');
    setPass('');
    setCode('');
  };
  const other = html`<button type="button" class="plain" data-test="back" onClick=${back}>Sign in as another user</button>`;
  if (wanted === 'setup') {
    return html`<${Door} title="Set up a second factor">
      <p class="prose">This webserver requires a second factor, which <b>${user}</b> does not have yet. Set it up to sign in.</p>
      <${SetUp} credentials=${{ User: user, Pass: pass }} onDone=${load} />
      ${other}
    <//>`;
  }
  if (wanted === 'code') {
    return html`<${Door} title="Second factor">
      <form onSubmit=${submit}>
        <${CodeField} value=${code} onValue=${setCode} />
        ${shown}
        <button type="submit" class="primary" data-test="sign-in" disabled=${busy}>${busy ? 'Signing in …' : 'Sign in'}</button>
      </form>
      ${other}
    <//>`;
  }
  return html`<${Door} title="Gravwell">
    <form onSubmit=${submit}>
      <${Field} name="user" test="user" label="User name" value=${user} onValue=${setUser} required autofocus autocomplete="username" autocapitalize="none" spellcheck="false" />
      <${Field} name="pass" test="pass" label="Password" type="password" value=${pass} onValue=${setPass} required autocomplete="current-password" />
      ${shown}
      <button type="submit" class="primary" data-test="sign-in" disabled=${busy}>${busy ? 'Signing in …' : 'Sign in'}</button>
    </form>
  <//>`;
}
