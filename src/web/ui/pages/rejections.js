// Changes that were made on this webserver and later rejected by the datastore.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { get, post, remove } from '../lib/api.js';
import { Differences } from '../lib/differences.js';
import { FormDialog } from '../lib/dialog.js';
import { standing } from '../lib/events.js';
import { useLive } from '../lib/live.js';
import { useWatched } from '../lib/value.js';
import { Badge, Loaded, Page, Table, Time, attempt, confirm } from '../lib/ui.js';

const address = (one) => `/api/rejections/${encodeURIComponent(one.ID)}`;

async function dismiss(one) {
  const text = 'This discards the change. Its contents are lost unless you make the change again.';
  return (await confirm({ title: 'Dismiss this change?', text, verb: 'Dismiss' })) && attempt(() => remove(address(one)), 'The change was dismissed.');
}

/** Indents JSON; returns other text unchanged. */
function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text ?? '';
  }
}

/** Compares the current objects with the change, and applies it only to these versions. */
function Again({ one, compared, onClose }) {
  const action = () => post(`${address(one)}/retry`, { Upon: compared.Upon.map(({ Collection, Key, Version }) => ({ Collection, Key, Version })) });
  return html`<${FormDialog} title="Compare with the current version" verb="Apply to this version" wide=${true} action=${action} onClose=${onClose}>
    <p class="hint">Applying the change overwrites newer changes of other users as shown. If the object changes again before you apply, nothing is overwritten.</p>
    ${compared.Upon.map((object) => html`<div key=${`${object.Collection}/${object.Key}`}><b>${object.Collection}/${object.Key}</b>
      <${Differences} before=${readable(object.Present)} after=${object.Mine === null ? '' : readable(object.Mine)} /></div>`)}
  <//>`;
}

export function Rejections({ me }) {
  const [again, setAgain] = useState(null);
  const compare = (one) => attempt(async () => setAgain({ one, compared: await get(address(one)) }));
  const live = useLive('/api/rejections', []);
  const { Rejected } = useWatched(standing);
  // Rejections are not a collection; their number is part of the webserver's status.
  useEffect(() => {
    live.reload();
  }, [Rejected]);
  const then = (done) => done.then(live.reload);
  const columns = [
    { title: 'Change', kind: 'wide', cell: (one) => html`<b>${one.What || 'change'}</b><p class="hint">${one.Ops.map((op, at) => html`<${Badge} key=${at} kind=${op.Op === 'delete' ? 'error' : ''}>${op.Op} ${op.Collection}<//> `)}</p>` },
    { title: 'Reason', kind: 'wide', cell: (one) => html`<span title=${one.Detail}>${one.Reason}</span>` },
    { title: 'Author', cell: (one) => `${one.User || 'the webserver'}${one.From ? ` from ${one.From}` : ''}` },
    { title: 'Webserver', cell: (one) => one.Webserver },
    { title: 'Created', cell: (one) => html`<${Time} at=${one.Made} />` },
    {
      title: 'Actions',
      kind: 'actions',
      cell: (one) => html`<button data-test="retry" onClick=${() => then(attempt(() => post(`${address(one)}/retry`), 'The change was sent again.'))}>Retry</button>
        <button data-test="compare" onClick=${() => compare(one)}>Compare …</button>
        <button class="danger" data-test="delete" onClick=${() => then(dismiss(one))}>Dismiss</button>`,
    },
  ];
  return html`<${Page} title="Rejected changes">
    <p class="prose">
      These changes were made on this webserver while the datastore was unreachable. The datastore rejected them later, usually because of newer changes.
      ${me.Admin ? ' You see the rejected changes of all users of this webserver.' : ' You see only your own changes.'}
    </p>
    <${Loaded} live=${live}>
      <${Table} label="Rejected changes" columns=${columns} rows=${live.data ?? []} keyOf=${(one) => one.ID} nameOf=${(one) => one.What} empty="There are no rejected changes, so there is nothing to do." />
    <//>
    ${again && html`<${Again} ...${again} onClose=${() => then(Promise.resolve(setAgain(null)))} />`}
  <//>`;
}
