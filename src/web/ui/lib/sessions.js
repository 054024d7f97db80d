// The list of a user's sessions.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { useLive } from './live.js';
import { Loaded, Pending, Table, Time } from './ui.js';

// User agents name other browsers for compatibility; the first match identifies the browser.
const BROWSERS = [['Edg/', 'Edge'], ['OPR/', 'Opera'], ['Firefox/', 'Firefox'], ['HeadlessChrome/', 'Chrome'], ['Chrome/', 'Chrome'], ['Safari/', 'Safari']];
const SYSTEMS = [['Android', 'Android'], ['iPhone', 'iPhone'], ['iPad', 'iPad'], ['Windows', 'Windows'], ['Mac OS', 'macOS'], ['Linux', 'Linux']];

function nameOf(agent) {
  const fits = ([mark]) => agent.includes(mark);
  const [browser, system] = [BROWSERS.find(fits), SYSTEMS.find(fits)];
  return browser && system ? `${browser[1]} on ${system[1]}` : agent;
}

export function Sessions({ uid }) {
  const live = useLive(`/api/users/${uid}/sessions`, ['sessions']);
  const columns = [
    { title: 'Address', cell: (session) => html`${session.Origin}${session.Su ? ` (${session.Su} acting as this user)` : ''} <${Pending} of=${session} />` },
    { title: 'Browser', kind: 'wide', cell: (session) => (session.Agent ? html`<span title=${session.Agent}>${nameOf(session.Agent)}</span>` : '–') },
    { title: 'Webserver', cell: (session) => session.Webserver },
    { title: 'Started', cell: (session) => html`<${Time} at=${session.Created} />` },
    { title: 'Last seen', cell: (session) => html`<${Time} at=${session.LastHit} />` },
    { title: 'Expires', cell: (session) => html`<${Time} at=${session.Expires} />` },
  ];
  return html`<${Loaded} live=${live}>
    <${Table} label="Sessions" columns=${columns} rows=${live.data?.Sessions ?? []} keyOf=${(session) => session.ID} empty="There are no active sessions." />
  <//>`;
}
