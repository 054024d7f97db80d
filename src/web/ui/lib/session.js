// Who is signed in, and the theme that this person likes.
import * as api from './api.js';
import { forgetDrafts } from './draft.js';
import * as events from './events.js';
import * as json from './json.js';
import { forget } from './live.js';
import { withCode } from './codes.js';
import { Watched } from './value.js';

/** undefined: not known yet; null: nobody; else what the webserver says about the user. */
export const me = new Watched(undefined);
export const THEMES = ['system', 'light', 'dark'];
export const theme = new Watched('system');

function show(choice) {
  const known = THEMES.includes(choice) ? choice : 'system';
  theme.set(known);
  if (known === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = known;
  try {
    localStorage.setItem('theme', known);
  } catch {
    // Storage is switched off: the next first paint follows the system.
  }
}

/** The preferences' text: exactly what was stored. */
export async function readPreferences(path) {
  const { text } = await api.send('GET', path);
  return text;
}

export const preferencesPath = (uid) => `/api/users/${uid}/preferences`;

/** Applies the theme that preferences name. */
export function adopt(preferences) {
  try {
    show(JSON.parse(json.members(preferences).get('theme') ?? '"system"'));
  } catch {
    // Preferences may be any JSON.
  }
}

/** Stores the theme, leaving every other preference digit by digit as it is. */
export async function choose(uid, choice) {
  show(choice);
  const text = await readPreferences(preferencesPath(uid));
  const members = text.trim().startsWith('{') ? json.members(text) : new Map();
  members.set('theme', JSON.stringify(choice));
  await api.put(preferencesPath(uid), json.spliced({}, Object.fromEntries(members)));
}

async function begin(user) {
  me.set(user);
  if (user.MustChangePassword) return;
  events.start();
  try {
    adopt(await readPreferences(preferencesPath(user.UID)));
  } catch {
    // The theme stays as this browser remembers it.
  }
}

function end() {
  events.stop();
  forget();
  forgetDrafts();
  me.set(null);
}

/** Finds out who is signed in. */
export async function load() {
  forget();
  try {
    await begin(await api.get('/api/info/whoami', { quiet: true }));
  } catch (error) {
    if (error.status !== 401) throw error;
    end();
  }
}

/** Reads again who one is: name, groups or role may have changed. */
export async function refresh() {
  const user = await api.get('/api/info/whoami');
  if (me.get()) me.set(user);
}

/** Signs in; says what is asked for before that: a code, or that a second factor is set up. */
export async function signIn(user, password, code) {
  const body = withCode({ User: user, Pass: password }, code);
  // A wrong password is not the end of a session.
  const answer = await api.post(code ? '/api/login/mfa' : '/api/login', body, { quiet: true });
  if (!answer.LoginStatus) {
    if (answer.MFASetupRequired) return 'setup';
    if (answer.MFARequired) return 'code';
    throw new api.ApiError(422, answer.Reason, answer);
  }
  await load();
  return 'password';
}

export async function signOut() {
  try {
    await api.put('/api/logout', undefined, { quiet: true });
  } catch (error) {
    if (error.status !== 401) throw error;
  }
  end();
}

api.onSignedOut(() => me.get() && end());
