// The signed-in user, and the theme from the user's preferences.
import * as api from './api.js';
import { forgetDrafts } from './draft.js';
import * as events from './events.js';
import * as json from './json.js';
import { forget } from './live.js';
import { withCode } from './codes.js';
import { Watched } from './value.js';

/** undefined: not known yet; null: not signed in; else the user as returned by the webserver. */
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
    // Storage is disabled: the next first paint uses the system's theme.
  }
}

/** Returns the text of the preferences exactly as stored. */
export async function readPreferences(path) {
  const { text } = await api.send('GET', path);
  return text;
}

export const preferencesPath = (uid) => `/api/users/${uid}/preferences`;

/** Applies the theme from preferences. */
export function adopt(preferences) {
  try {
    show(JSON.parse(json.members(preferences).get('theme') ?? '"system"'));
  } catch {
    // Preferences may be any JSON.
  }
}

/** Stores the theme and keeps the exact text of all other preferences. */
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
    // Keep the theme that this browser has stored.
  }
}

function end() {
  events.stop();
  forget();
  forgetDrafts();
  me.set(null);
}

/** Loads the signed-in user. */
export async function load() {
  forget();
  try {
    await begin(await api.get('/api/info/whoami', { quiet: true }));
  } catch (error) {
    if (error.status !== 401) throw error;
    end();
  }
}

/** Reloads the signed-in user, whose name, groups or role may have changed. */
export async function refresh() {
  const user = await api.get('/api/info/whoami');
  if (me.get()) me.set(user);
}

/** Signs in. Resolves to 'password' when done, 'code' if a code is required, or 'setup' if a second factor must be set up. */
export async function signIn(user, password, code) {
  const body = withCode({ User: user, Pass: password }, code);
  // A wrong password does not end a session.
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
