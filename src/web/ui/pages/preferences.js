// The user's preferences: the theme, and all preferences as JSON.
import { html, useState } from '../vendor/htm-preact-standalone.module.js';
import { put, remove } from '../lib/api.js';
import { useDraft } from '../lib/draft.js';
import { indented } from '../lib/json.js';
import { JsonArea, useJsonFault } from '../lib/json-area.js';
import { useLive } from '../lib/live.js';
import { THEMES, adopt, choose, preferencesPath, readPreferences, theme } from '../lib/session.js';
import { useWatched } from '../lib/value.js';
import { Loaded, Page, attempt, confirm, toast } from '../lib/ui.js';

const NAMES = { system: 'Same as system', light: 'Light', dark: 'Dark' };

function understood(text) {
  adopt(text);
  const isNone = text.trim() === '' || text.trim() === 'null';
  // Preferences have no version, so their text serves as ETag.
  return { fields: { Data: isNone ? '{}' : indented(text) }, etag: text, isNone };
}

const read = async (path) => understood(await readPreferences(path));

function Theme({ me }) {
  const chosen = useWatched(theme);
  return html`<section class="card">
    <h2>Theme</h2>
    <div class="choices" role="radiogroup" aria-label="Theme">
      ${THEMES.map(
        (name) => html`<label class="check" key=${name}>
          <input type="radio" name="theme" data-test=${`theme-${name}`} checked=${chosen === name} onChange=${() => attempt(() => choose(me.UID, name))} />
          <span>${NAMES[name]}</span>
        </label>`,
      )}
    </div>
    <p class="hint">Stored in your preferences, so it applies in all your browsers and on all webservers.</p>
  </section>`;
}

export function Preferences({ me }) {
  const path = preferencesPath(me.UID);
  const live = useLive(path, ['preferences'], { read });
  const draft = useDraft(path, live.data, () => read(path));
  const problem = useJsonFault(draft?.fields.Data ?? '{}');
  const [failure, setFailure] = useState('');
  const submit = async (event) => {
    event.preventDefault();
    setFailure('');
    try {
      await draft.save(async ({ Data }) => {
        await put(path, Data);
        return read(path);
      });
      toast('Your preferences were saved.');
    } catch (error) {
      setFailure(error.message);
    }
  };
  const erase = async () => {
    const text = 'This deletes all your preferences on all webservers; programs use their defaults instead. You cannot undo this.';
    if (!(await confirm({ title: 'Delete your preferences?', text }))) return;
    await attempt(() => remove(path), 'Your preferences were deleted.');
    live.reload();
  };
  return html`<${Page} title="Preferences">
    <${Theme} me=${me} />
    <${Loaded} live=${live}>
      ${draft &&
      html`<section class="card">
        <h2>All preferences</h2>
        ${live.data?.isNone && html`<p class="hint">You have no stored preferences yet.</p>`}
        <form onSubmit=${submit}>
          ${draft.bar}
          <${JsonArea} name="Data" label="Preferences (JSON)" rows="16" value=${draft.fields.Data} onValue=${(Data) => draft.set({ Data })} problem=${problem} />
          ${failure && html`<p class="failure" role="alert" data-test="failure">${failure}</p>`}
          <footer class="form-foot">
            <button type="submit" class="primary" data-test="save" disabled=${!draft.isDirty || problem !== null}>Save</button>
            ${draft.discard}
            <button type="button" class="danger" data-test="delete" disabled=${live.data?.isNone} onClick=${erase}>Delete</button>
          </footer>
        </form>
      </section>`}
    <//>
  <//>`;
}
