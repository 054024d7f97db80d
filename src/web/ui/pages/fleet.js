// State of this webserver, the datastore and the connected members.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { standing } from '../lib/events.js';
import { useLive } from '../lib/live.js';
import { Badge, Bytes, Facts, Loaded, Page, Table, Time, spanText } from '../lib/ui.js';
import { useWatched } from '../lib/value.js';

const REFRESH_MS = 2_000;
const number = (value) => (value === null || value === undefined ? '–' : Number(value).toLocaleString('en'));
const short = (text) => (text ? html`<code title=${text}>${text.slice(0, 12)}</code>` : '–');

const KINDS = { good: 'good', attention: 'warn', failed: 'error' };
const WORDS = { good: 'healthy', attention: 'needs attention', failed: 'unhealthy' };

function Health({ of }) {
  const title = (of.Reasons || []).map((reason) => reason.Message).join('; ');
  return html`<${Badge} kind=${KINDS[of.Level]} title=${title}>${WORDS[of.Level]}<//>`;
}

function Reasons({ of }) {
  return (of.Reasons || []).map((reason) => html`<p class="failure" role="alert" key=${reason.Code}>${reason.Message}. ${reason.Remedy}</p>`);
}

function Webserver({ of }) {
  return html`<section class="card" data-test="webserver">
    <header class="card-head"><h2>This webserver</h2><${Health} of=${of} /></header>
    <${Reasons} of=${of} />
    <${Facts} of=${[
      ['Name', of.Name],
      ['External address', of.ExternalAddr || 'not set (External-Addr)'],
      ['Datastore', of.Connected ? 'connected' : 'unreachable'],
      ['Applied position', number(of.Seq)],
      ['Lag', `${number(of.LagOps)} operations`],
      ['Pending changes', number(of.Outbox)],
      ['Rejected changes', number(of.Rejected)],
      ['Objects', number(of.Objects)],
      ['State digest', short(of.Digest)],
      ['Uptime', spanText(of.UptimeMs)],
      ['Software', `gravwell ${of.Version}${of.StandsAlone ? ', standalone' : ''}`],
    ]} />
  </section>`;
}

function Datastore({ of, own }) {
  if (!of) {
    return html`<section class="card" data-test="datastore">
      <header class="card-head"><h2>Datastore</h2><${Badge} kind="warn">unreachable<//></header>
      <p class="prose">The datastore does not respond. This webserver keeps working offline; changes sync on reconnect.</p>
    </section>`;
  }
  // Digests are comparable only at the same position.
  const isSame = of.Seq === own.Seq ? (of.Digest === own.Digest ? ', same as this webserver' : ', differs from this webserver') : '';
  return html`<section class="card" data-test="datastore">
    <header class="card-head"><h2>Datastore</h2><${Health} of=${of} /></header>
    <${Reasons} of=${of} />
    <${Facts} of=${[
      of.Address && ['Address', of.Address],
      ['Log head', number(of.Head)],
      ['Oldest retained position', number(of.Floor)],
      ['Generation', number(of.Generation)],
      ['Members connected', number(of.Subscribers)],
      ['Objects', number(of.Objects)],
      ['State digest', html`${short(of.Digest)}${isSame}`],
      ['Log', html`<${Bytes} of=${of.LogBytes} />`],
      ['Free disk', html`<${Bytes} of=${of.DiskFreeBytes} />`],
      ['Uptime', spanText(of.UptimeMs)],
      ['Software', `gravwell ${of.Version}`],
    ]} />
  </section>`;
}

export function Fleet() {
  const now = useWatched(standing);
  // Every write changes positions; the short interval covers changes of other collections.
  const live = useLive('/api/fleet', ['users', 'dashboards', 'resources', 'preferences', 'sessions', 'history'], { everyMs: REFRESH_MS });
  const fleet = live.data;
  const head = fleet?.Datastore?.Head;
  // The position that a member last reported to the datastore; this webserver's own position is more recent.
  const applied = (member) => (member.Name === fleet.Webserver.Name ? Math.max(member.Applied, fleet.Webserver.Seq) : member.Applied);
  const lag = (member) => (head === undefined ? '–' : number(Math.max(0, head - applied(member))));
  const columns = [
    { title: 'Member', cell: (member) => html`<b>${member.Name}</b> ${member.Name === fleet.Webserver.Name && html`<${Badge}>this webserver<//>`}` },
    { title: 'Role', cell: (member) => member.Role },
    { title: 'External address', cell: (member) => member.ExternalAddr || '–' },
    { title: 'Applied', kind: 'number', cell: (member) => number(applied(member)) },
    { title: 'Lag', kind: 'number', cell: lag },
    { title: 'Outbox', kind: 'number', cell: (member) => number(member.Outbox) },
    { title: 'Rejected', kind: 'number', cell: (member) => (member.Rejected > 0 ? html`<${Badge} kind="error">${member.Rejected}<//>` : '0') },
    { title: 'Health', cell: (member) => html`<${Health} of=${{ Level: member.Unhealthy ? 'failed' : 'good', Reasons: [{ Message: member.Unhealthy }] }} />` },
    { title: 'Software', cell: (member) => member.Software },
    { title: 'Connected', cell: (member) => html`<${Time} at=${member.SinceMs} />` },
  ];
  return html`<${Page} title="Fleet">
    <${Loaded} live=${live}>
      ${fleet &&
      html`<div class="cards">
          <${Webserver} of=${{ ...fleet.Webserver, Outbox: now.Outbox, Rejected: now.Rejected }} />
          <${Datastore} of=${fleet.Datastore} own=${fleet.Webserver} />
        </div>
        <h2>Members</h2>
        <${Table}
          label="Members"
          columns=${columns}
          rows=${fleet.Members}
          keyOf=${(member) => `${member.Name} ${member.SinceMs}`}
          nameOf=${(member) => member.Name}
          empty=${fleet.Datastore ? 'No member is connected to the datastore.' : 'The list of connected members is available when the datastore is reachable.'}
        />`}
    <//>
  <//>`;
}
