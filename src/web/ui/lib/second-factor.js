// The second factor of an account: setup, recovery codes and verification.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { post, put, renewing } from './api.js';
import { withCode } from './codes.js';
import { Dialog } from './dialog.js';
import { Field } from './fields.js';
import { useLive } from './live.js';
import { attempt } from './toast.js';

const SETUP = '/api/mfa/totp/setup';
/** A wrong password or code does not end the session. */
const QUIET = { quiet: true };

export const useSecondFactor = () => useLive('/api/mfa', ['second-factors', 'recovery-codes']);

export function CodeField({ value, onValue, label = 'Code', hint = 'Enter the six digits that your app shows, or a recovery code.' }) {
  return html`<${Field} name="Code" label=${label} value=${value} onValue=${onValue} hint=${hint} required autocomplete="one-time-code" autocapitalize="none" spellcheck="false" />`;
}

/** Runs an action and keeps its error message. */
export function useAction() {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState('');
  const run = async (action) => {
    setBusy(true);
    setFailure('');
    try {
      await action();
    } catch (error) {
      setFailure(error.message);
    }
    setBusy(false);
  };
  const shown = failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`;
  return { busy, shown, run };
}

/** Recovery codes, which are shown only once. */
export function RecoveryCodes({ codes, onDone }) {
  const text = codes.join('\n');
  return html`<div data-test="recovery-codes">
    <p class="prose">
      These are your recovery codes. You can use each code once instead of a code of your app, for example if you lose your phone. Copy them to a safe place now:
      they are not shown again.
    </p>
    <pre class="code secret" tabindex="0" aria-label="Recovery codes" data-test="codes">${text}</pre>
    <footer class="form-foot">
      ${navigator.clipboard && html`<button type="button" data-test="copy" onClick=${() => attempt(() => navigator.clipboard.writeText(text), 'Copied.')}>Copy</button>`}
      <button type="button" class="primary" data-test="done" onClick=${onDone}>Done</button>
    </footer>
  </div>`;
}

/** Shows the QR code and verifies a code of the app. Calls `onCodes` with the recovery codes. */
function Scan({ begun, credentials, onCodes }) {
  const [code, setCode] = useState('');
  const { busy, shown, run } = useAction();
  const submit = (event) => {
    event.preventDefault();
    run(async () => {
      const body = { ...credentials, AuthType: 'TOTP', AuthCode: code.replaceAll(/\s/g, '') };
      onCodes((await renewing(() => put(SETUP, body, QUIET))).RecoveryCodes);
    });
  };
  return html`<form onSubmit=${submit}>
    <p class="prose">Scan this QR code with an authenticator app on your phone, then enter the code that the app shows.</p>
    <img class="qr" data-test="qr" src=${`data:image/png;base64,${begun.QRCode}`} alt="QR code for an authenticator app. You can enter the key below instead." />
    <details>
      <summary>Cannot scan the code?</summary>
      <p class="hint">Enter this key in the app and select time-based codes.</p>
      <pre class="code secret" tabindex="0" aria-label="Key" data-test="seed">${begun.Seed.match(/.{1,4}/g).join(' ')}</pre>
    </details>
    <div class="fields"><${CodeField} value=${code} onValue=${setCode} hint="Enter the six digits that your app shows." /></div>
    ${shown}
    <button type="submit" class="primary" data-test="prove" disabled=${busy}>Turn on</button>
  </form>`;
}

/** Sets up an app for a user with known credentials. */
export function SetUp({ credentials, onDone }) {
  const [begun, setBegun] = useState(null);
  const [codes, setCodes] = useState(null);
  const { shown, run } = useAction();
  const begin = () => run(async () => setBegun(await post(SETUP, credentials, QUIET)));
  useEffect(() => {
    begin();
  }, []);
  if (codes) return html`<${RecoveryCodes} codes=${codes} onDone=${onDone} />`;
  if (begun) return html`<${Scan} begun=${begun} credentials=${credentials} onCodes=${setCodes} />`;
  return shown ? html`${shown}<button type="button" onClick=${begin}>Try again</button>` : html`<p class="loading">Loading …</p>`;
}

/** Asks for the password, and for a code if a factor is set up, and calls `action` with them. */
export function Prove({ user, isSet, verb, action, children }) {
  const [typed, setTyped] = useState({ Pass: '', Code: '' });
  const { busy, shown, run } = useAction();
  const set = (name) => (value) => setTyped((before) => ({ ...before, [name]: value }));
  const submit = (event) => {
    event.preventDefault();
    run(() => action(withCode({ User: user, Pass: typed.Pass }, typed.Code)));
  };
  return html`<form onSubmit=${submit}>
    ${children}
    <div class="fields">
      <${Field} name="Pass" label="Password" type="password" value=${typed.Pass} onValue=${set('Pass')} required autocomplete="current-password" />
      ${isSet && html`<${CodeField} value=${typed.Code} onValue=${set('Code')} />`}
    </div>
    ${shown}
    <footer class="form-foot"><button type="submit" class="primary" data-test="prove-password" disabled=${busy}>${verb}</button></footer>
  </form>`;
}

/** Sets up or replaces an app within a session. */
export function SetUpDialog({ user, isSet: isSetNow, onClose }) {
  // Keep the purpose of the dialog after the factor is set up.
  const [isSet] = useState(isSetNow);
  const [step, setStep] = useState({ name: 'prove' });
  const begin = async (proof) => {
    const begun = await post(SETUP, proof, QUIET);
    setStep({ name: 'scan', begun, credentials: { User: proof.User, Pass: proof.Pass } });
  };
  const title = isSet ? 'Use another authenticator app' : 'Set up a second factor';
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${step.name === 'prove' &&
    html`<${Prove} user=${user} isSet=${isSet} verb="Continue" action=${begin}>
      <p class="prose">After this, you need a code of an app on your phone to sign in. Your other sessions end; API tokens stay valid.</p>
    <//>`}
    ${step.name === 'scan' && html`<${Scan} begun=${step.begun} credentials=${step.credentials} onCodes=${(codes) => setStep({ name: 'codes', codes })} />`}
    ${step.name === 'codes' && html`<${RecoveryCodes} codes=${step.codes} onDone=${onClose} />`}
  <//>`;
}

/** Replaces the remaining recovery codes with new ones. */
export function NewCodesDialog({ user, onClose }) {
  const [codes, setCodes] = useState(null);
  const make = async (proof) => setCodes((await post('/api/mfa/recoverycodes/generate', proof, QUIET)).Codes);
  return html`<${Dialog} title="New recovery codes" onClose=${onClose}>
    ${codes
      ? html`<${RecoveryCodes} codes=${codes} onDone=${onClose} />`
      : html`<${Prove} user=${user} isSet=${true} verb="Create new codes" action=${make}>
          <p class="prose">Your current codes become invalid.</p>
        <//>`}
  <//>`;
}

/** Removes the second factor. */
export function ClearDialog({ user, onClose, onDone }) {
  const clear = async (proof) => {
    await post('/api/mfa/clear', proof, QUIET);
    onDone();
    onClose();
  };
  return html`<${Dialog} title="Turn off the second factor?" onClose=${onClose}>
    <${Prove} user=${user} isSet=${true} verb="Turn off" action=${clear}>
      <p class="prose">After this, you sign in with your password alone. Your recovery codes become invalid.</p>
    <//>
  <//>`;
}
