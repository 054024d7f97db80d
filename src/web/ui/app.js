// The application frame: shows the sign-in form or the page that the hash of the address selects.
import { html, render, useEffect, useRef, useState } from './vendor/htm-preact-standalone.module.js';
import { Shell } from './lib/shell.js';
import * as session from './lib/session.js';
import { onChanged } from './lib/events.js';
import { Confirm, Toasts } from './lib/ui.js';
import { USERS } from './lib/people.js';
import { Uploads } from './lib/uploads.js';
import { useWatched } from './lib/value.js';
import { pageOf } from './routes.js';
import { MustChange } from './pages/must-change.js';
import { SignIn } from './pages/sign-in.js';

const place = () => location.hash.replace(/^#/, '') || '/fleet';

function usePlace() {
  const [hash, setHash] = useState(place());
  useEffect(() => {
    const changed = () => setHash(place());
    addEventListener('hashchange', changed);
    return () => removeEventListener('hashchange', changed);
  }, []);
  return hash;
}

function Signed({ me }) {
  const hash = usePlace();
  const main = useRef(null);
  const isFirst = useRef(true);
  // Role and groups determine which pages are available; they may change while a page is open.
  useEffect(
    () => onChanged((changed) => (changed === null || USERS.some((name) => changed.has(name))) && session.refresh().catch(() => {})),
    [],
  );
  useEffect(() => {
    if (isFirst.current) {
      isFirst.current = false;
      return;
    }
    // Moving the focus announces the new page to screen readers.
    main.current?.querySelector('h1')?.focus();
    scrollTo(0, 0);
  }, [hash]);
  const { page, name, parameters } = pageOf(hash, me.Admin);
  return html`<${Shell} me=${me} current=${name}>
    <main id="main" ref=${main} tabindex="-1">
      <${page} key=${hash} me=${me} ...${parameters} />
    </main>
  <//>`;
}

function App() {
  const me = useWatched(session.me);
  const [failure, setFailure] = useState('');
  const load = () => {
    setFailure('');
    session.load().catch((error) => setFailure(error.message));
  };
  useEffect(load, []);
  let shown;
  if (me) shown = me.MustChangePassword ? html`<${MustChange} me=${me} />` : html`<${Signed} me=${me} />`;
  else if (me === null) shown = html`<${SignIn} />`;
  else if (failure) {
    shown = html`<div class="empty" role="alert"><p>${failure}</p><button onClick=${load}>Try again</button></div>`;
  }
  return html`${shown}<${Confirm} />
    <div class="corner"><${Uploads} /><${Toasts} /></div>`;
}

render(html`<${App} />`, document.getElementById('app'));
