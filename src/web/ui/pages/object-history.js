// The history of an object: its versions, newest first, with the differences between them.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Differences } from '../lib/differences.js';
import { Head } from '../lib/entries.js';
import { standing } from '../lib/events.js';
import { comparable } from '../lib/json.js';
import { useLive } from '../lib/live.js';
import { Badge, Loaded, Page, bytesText } from '../lib/ui.js';
import { useWatched } from '../lib/value.js';

/** Returns the operations of the entries on this object. */
function versions(entries, collection, key) {
  return entries.flatMap((entry) =>
    (entry.Ops ?? [])
      .filter((op) => op.Collection === collection && op.Key === key)
      .map((op) => ({ entry, op, isDelete: op.Op === 'delete', text: op.Value?.Json === undefined ? null : comparable(op.Value.Json) })),
  );
}

function What({ version, before }) {
  const { isDelete, text, op } = version;
  if (isDelete) return before?.text ? html`<${Differences} before=${before.text} after="" />` : null;
  if (text === null) return html`<p class="hint">${bytesText(op.Value.Bytes)}, too large to display.</p>`;
  // After a deletion and for the first version, all lines are new.
  if (!before || before.isDelete) return html`<${Differences} before="" after=${text} />`;
  if (before.text === null) return html`<pre class="code" tabindex="0">${text}</pre>`;
  return html`<${Differences} before=${before.text} after=${text} />`;
}

const KINDS = { created: 'good', changed: 'info', deleted: 'error', 'oldest retained': '' };

function kindOf(version, before) {
  if (version.isDelete) return 'deleted';
  if (before) return before.isDelete ? 'created' : 'changed';
  return 'oldest retained';
}

export function ObjectHistory({ collection, address }) {
  const name = decodeURIComponent(collection);
  const key = decodeURIComponent(address);
  // Slashes in the key separate path segments.
  const path = `/api/log/object/${encodeURIComponent(name)}/${key.split('/').map(encodeURIComponent).join('/')}`;
  const live = useLive(path, [name]);
  const { Connected } = useWatched(standing);
  const found = versions(live.data ?? [], name, key);
  return html`<${Page} title=${`${name}/${key}`} back=${{ href: '#/log', text: 'Live log' }}>
    ${live.error?.status === 503 &&
    html`<p class="note note-warn">${Connected ? 'The datastore did not respond in time. Retrying automatically.' : 'The datastore, which stores the history, is unreachable. Retrying automatically.'}</p>`}
    <${Loaded} live=${live}>
      ${found.length === 0 && html`<div class="empty" data-test="empty">The log no longer contains this object: compaction has removed its old versions.</div>`}
      <ol class="entries">
        ${found.map((version, at) => {
          const before = found[at + 1];
          const kind = kindOf(version, before);
          return html`<li key=${version.entry.Seq} class=${`entry ${version.isDelete ? 'op-delete' : ''}`} data-test="version" data-kind=${kind}>
            <${Head} entry=${version.entry} />
            <p><${Badge} kind=${KINDS[kind]}>${kind}<//></p>
            <${What} version=${version} before=${before} />
          </li>`;
        })}
      </ol>
    <//>
  <//>`;
}
