// A stream of server-sent events that reconnects automatically.
import { get } from './api.js';

const RETRY_FIRST_MS = 500;
const RETRY_LAST_MS = 8_000;
/** A hidden page closes its connection after this time: without HTTP/2, browsers allow few connections per host. */
const HIDDEN_MS = 60_000;

/**
 * Listens at `url`. `events` maps each kind of event to a handler of its parsed data. `onOpen(isAgain)` is called when the
 * stream opens; events missed before a reconnect are not sent again. `onLost` is called when the webserver does not respond.
 * Returns a function that closes the stream.
 */
export function listen(url, events, { onOpen = () => {}, onLost = () => {} } = {}) {
  let source = null;
  let timer = 0;
  let retryMs = RETRY_FIRST_MS;
  let isAgain = false;
  let isOver = false;

  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const later = () => {
    timer = setTimeout(again, retryMs);
    retryMs = Math.min(retryMs * 2, RETRY_LAST_MS);
  };
  const open = () => {
    close();
    source = new EventSource(url);
    source.onopen = () => {
      retryMs = RETRY_FIRST_MS;
      onOpen(isAgain);
      isAgain = true;
    };
    for (const [name, act] of Object.entries(events)) {
      source.addEventListener(name, (event) => act(JSON.parse(event.data)));
    }
    // The browser's automatic reconnect gives up on some errors.
    source.onerror = () => {
      close();
      later();
    };
  };
  // An event source does not report why it closed. This request does, and shows the sign-in form if the session is over.
  const again = async () => {
    try {
      await get('/api/info/whoami');
    } catch (error) {
      if (isOver || error.status === 401) return;
      onLost();
      later();
      return;
    }
    if (!isOver && source === null) open();
  };
  let hiddenTimer = 0;
  const look = () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(close, HIDDEN_MS);
    else if (source === null) open();
  };
  document.addEventListener('visibilitychange', look);
  open();
  return () => {
    isOver = true;
    document.removeEventListener('visibilitychange', look);
    clearTimeout(hiddenTimer);
    close();
  };
}
