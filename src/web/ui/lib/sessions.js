// Where a user is signed in.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { useLive } from './live.js';
import { Loaded, Pending, Table, Time } from './ui.js';

export function Sessions({ uid }) {
  const live = useLive(`/api/users/${uid}/sessions`, ['sessions']);
  const columns = [
    { title: 'From', cell: (session) => html`${session.Origin} <${Pending} of=${session} />` },
    { title: 'Browser', kind: 'wide', cell: (session) => session.Agent || '–' },
    { title: 'Webserver', cell: (session) => session.Webserver },
    { title: 'Began', cell: (session) => html`<${Time} at=${session.Created} />` },
    { title: 'Last seen', cell: (session) => html`<${Time} at=${session.LastHit} />` },
    { title: 'Ends', cell: (session) => html`<${Time} at=${session.Expires} />` },
  ];
  return html`<${Loaded} live=${live}>
    <${Table} label="Sessions" columns=${columns} rows=${live.data?.Sessions ?? []} keyOf=${(session) => session.ID} empty="Not signed in anywhere." />
  <//>`;
}
