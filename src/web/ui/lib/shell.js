// The shell around every page: navigation, notifications and connection state.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { leftOut } from './api.js';
import { standing } from './events.js';
import { KINDS } from './kinds.js';
import { useLive } from './live.js';
import { signOut } from './session.js';
import { attempt } from './toast.js';
import { Badge } from './ui.js';
import { useWatched } from './value.js';

const SECTIONS = [
  { title: 'Overview', links: [['fleet', 'Fleet']] },
  { title: 'Searching', links: [['search', 'Search'], ['searches', 'Searches'], ['history', 'Search history']] },
  {
    title: 'Content',
    links: [['dashboards', 'Dashboards'], ['resources', 'Resources'], ...Object.entries(KINDS).map(([name, { title }]) => [name, title])],
  },
  { title: 'People', links: [['users', 'Users'], ['groups', 'Groups']] },
  {
    title: 'Your account',
    links: [['profile', 'Profile'], ['preferences', 'Preferences'], ['tokens', 'API tokens'], ['notifications', 'Notifications']],
  },
  { title: 'Operations', links: [['log', 'Live log', true], ['rejections', 'Rejected changes'], ['backup', 'Backup', true]] },
];

const changes = (count) => (count === 1 ? '1 change' : `${count} changes`);

function Banners({ now }) {
  if (!now.Reachable) {
    return html`<div class="banner banner-error" role="status" data-test="banner-unreachable">
      This webserver does not respond. Retrying automatically; this page may be out of date.
    </div>`;
  }
  return (
    !now.Connected &&
    html`<div class="banner" role="status" data-test="banner-offline">
      Offline: the datastore is unreachable. Your changes are stored on this webserver and sent on reconnect (${now.Outbox} pending).
    </div>`
  );
}

/** Lists invalid objects, which pages cannot display. */
function LeftOut() {
  const lists = [...useWatched(leftOut).values()];
  const keys = [...new Set(lists.flatMap((keys) => keys.split(', ')))];
  if (keys.length === 0) return null;
  const what = keys.length === 1 ? '1 object' : `${keys.length} objects`;
  return html`<div class="banner banner-error" role="status" data-test="banner-invalid">
    Cannot display ${what} with invalid data: ${keys.join(', ')}. Replace or delete them.
  </div>`;
}

export function Shell({ me, current, children }) {
  const now = useWatched(standing);
  const [isOpen, setOpen] = useState(false);
  const menu = useRef(null);
  const bell = Object.keys(useLive('/api/notifications', ['notifications', 'memberships']).data ?? {}).length;
  const rejections = useLive('/api/rejections', []);
  useEffect(() => {
    rejections.reload();
  }, [now.Rejected]);
  const rejected = now.Rejected === 0 ? 0 : (rejections.data ?? []).length;
  const escaped = (event) => {
    if (event.key !== 'Escape' || !isOpen) return;
    setOpen(false);
    menu.current?.focus();
  };
  const link = ([name, text, isForAdmins]) =>
    (me.Admin || !isForAdmins) &&
    html`<li key=${name}>
      <a href=${`#/${name}`} data-test=${`nav-${name}`} aria-current=${current === name ? 'page' : undefined} onClick=${() => setOpen(false)}>
        <span>${text}</span>
        ${name === 'rejections' && rejected > 0 && html`<${Badge} kind="error" test="badge-rejected">${rejected}<//>`}
      </a>
    </li>`;
  // Not a link, because the router uses the hash of the address.
  const skip = () => document.getElementById('main')?.focus();
  return html`<div class="shell">
    <button class="skip" onClick=${skip}>Skip to content</button>
    <header class="top">
      <button ref=${menu} class="plain menu" data-test="menu" aria-expanded=${String(isOpen)} aria-controls="navigation" onClick=${() => setOpen(!isOpen)}>
        <span aria-hidden="true">☰</span><span class="hidden-text">Menu</span>
      </button>
      <a class="brand" href="#/fleet">Gravwell</a>
      <span class=${`state ${now.Reachable && now.Connected ? '' : 'state-off'}`}>
        ${now.Outbox > 0 ? `${changes(now.Outbox)} pending` : now.Connected ? 'In sync' : 'Offline'}
      </span>
      <span class="fill"></span>
      <a class="bell" href="#/notifications" data-test="bell" aria-label=${`Notifications: ${bell}`}>
        <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
          <path d="M12 3a6 6 0 0 0-6 6v4l-2 3h16l-2-3V9a6 6 0 0 0-6-6zM9.5 19a2.5 2.5 0 0 0 5 0" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linejoin="round" />
        </svg>
        ${bell > 0 && html`<span class="bell-count" data-test="bell-count">${bell}</span>`}
      </a>
      <a class="who" href="#/profile">${me.User}</a>
      <button class="plain" data-test="sign-out" onClick=${() => attempt(signOut)}>Sign out</button>
    </header>
    <nav id="navigation" class=${isOpen ? 'open' : ''} aria-label="Main" onKeyDown=${escaped}>
      ${SECTIONS.map(({ title, links }) => html`<div key=${title}><h2>${title}</h2><ul>${links.map(link)}</ul></div>`)}
    </nav>
    <div class="content">
      <${Banners} now=${now} />
      <${LeftOut} />
      ${children}
    </div>
  </div>`;
}
