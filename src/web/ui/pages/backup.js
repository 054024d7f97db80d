// Download and restore of backups.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { remove, save, upload } from '../lib/api.js';
import { DropZone } from '../lib/uploads.js';
import { Check, Field, Page, bytesText, confirm, toast } from '../lib/ui.js';

const address = (omit) => `/api/backup?omit_sensitive=${omit}`;

function Download() {
  const [omit, setOmit] = useState(false);
  const [password, setPassword] = useState('');
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState('');
  const encrypted = async () => {
    setBusy(true);
    setFailure('');
    try {
      await save(address(omit), { Password: password }, 'gravwell-backup');
      toast('The backup was downloaded.');
    } catch (error) {
      setFailure(error.message);
    }
    setBusy(false);
  };
  // A header value is limited to printable ASCII characters.
  const isOdd = /[^\x20-\x7e]/.test(password);
  return html`<section class="card">
    <h2>Download</h2>
    <div class="fields">
      <${Check} name="omit_sensitive" label="Exclude secrets" hint="passwords, tokens, sessions and keys" value=${omit} onValue=${setOmit} />
      <${Field} name="Password" label="Password" type="password" value=${password} onValue=${setPassword} autocomplete="new-password" hint="Encrypts the backup. You need this password to restore it. Leave empty for a backup without encryption." error=${isOdd ? 'Use only ASCII letters, digits, spaces and punctuation.' : ''} />
    </div>
    ${!omit && !password && html`<p class="note note-warn">This backup contains secrets and is not encrypted. Protect it like the webservers themselves.</p>`}
    ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
    ${password
      ? html`<button class="primary" data-test="download" disabled=${busy || isOdd} onClick=${encrypted}>${busy ? 'Downloading …' : 'Download'}</button>`
      : html`<a class="button primary" data-test="download" href=${address(omit)} download>Download</a>`}
  </section>`;
}

function Restore() {
  const [file, setFile] = useState(null);
  const [password, setPassword] = useState('');
  const [part, setPart] = useState(null);
  const [failure, setFailure] = useState('');
  const restore = async () => {
    const text = `This restores the contents of ${file.name} (${bytesText(file.size)}) on all webservers. Changes made after the backup may be overwritten. Download a backup of the current state first.`;
    if (!(await confirm({ title: 'Restore this backup?', text, verb: 'Restore', word: 'restore' }))) return;
    setFailure('');
    setPart(0);
    const form = new FormData();
    // The password precedes the file, because the webserver reads the form as a stream.
    if (password) form.append('password', password);
    form.append('backup', file);
    try {
      await upload('POST', '/api/backup', form, setPart).done;
      toast('The backup was restored.');
      setFile(null);
    } catch (error) {
      setFailure(error.message);
    }
    setPart(null);
  };
  const end = async () => {
    const text = 'The changes of a restore that was cut short stay, and all users are served again. Check users and their locks afterwards. To finish the restore, restore the same backup again instead.';
    if (!(await confirm({ title: 'End the unfinished restore?', text, verb: 'End the restore' }))) return;
    setFailure('');
    try {
      await remove('/api/backup');
      toast('The unfinished restore was ended.');
    } catch (error) {
      setFailure(error.message);
    }
  };
  const isBusy = part !== null;
  return html`<section class="card">
    <h2>Restore</h2>
    <div class="fields">
      <${DropZone} onFile=${setFile} text=${file ? `${file.name}, ${bytesText(file.size)}` : 'No backup file selected.'} />
      <${Field} name="RestorePassword" label="Password of the backup" type="password" value=${password} onValue=${setPassword} autocomplete="off" hint="Required only if the backup is encrypted." />
    </div>
    ${failure && html`<p class="failure" role="alert" data-test="failure-restore">${failure}</p>`}
    ${isBusy && html`<div class="upload"><span>${part < 1 ? 'Uploading' : 'Restoring'}</span><progress max="1" value=${part} aria-label="Restoring"></progress></div>`}
    <button class="danger" data-test="restore" disabled=${!file || isBusy} onClick=${restore}>Restore …</button>
    <button data-test="end-restore" disabled=${isBusy} onClick=${end}>End an unfinished restore …</button>
  </section>`;
}

export function Backup() {
  return html`<${Page} title="Backup">
    <p class="prose">A backup contains users, groups, dashboards, resources with their contents, preferences, search histories and notifications of all webservers.</p>
    <div class="cards"><${Download} /><${Restore} /></div>
  <//>`;
}
