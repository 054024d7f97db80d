// Components shared by all pages.
//
// Attributes for tests, which stay the same when the appearance changes:
//   data-test="user" "pass" "sign-in"                 the sign-in form
//   data-test="nav-fleet" "nav-dashboards" "nav-resources" "nav-history" "nav-preferences" "nav-tokens"
//     "nav-KIND" (see lib/kinds.js) "nav-notifications" "nav-users" "nav-groups" "nav-log" "nav-rejections" "nav-backup" "nav-profile"  navigation
//   data-test="menu" "bell" "bell-count" "sign-out"   the shell: menu of narrow screens, notifications, sign-out
//   data-test="create-user" "create-group" "create-dashboard" "create-resource" "create-token" "create-notification" "create-owned"
//   data-test="lock" "unlock" "set-password" "is-locked" "is-admin" "group-NAME"   the page of a user; "is-…" also in the list
//   data-test="field-NAME"                            an input; NAME as in the API, for example field-Name, field-Data
//   data-test="save" "delete" "edit" "clone" "cancel" "close" "confirm"   buttons; "confirm" accepts a confirmation
//   data-test="share-read-NAME" "share-write-NAME"    groups with read or write access, by name
//   data-test="row-NAME" with data-row="NAME"         a row of a table, by the name of its object
//   data-test="pending"                               badge of objects that the datastore has not received yet
//   data-test="banner-invalid"                        invalid objects, which cannot be displayed
//   data-test="banner-offline" "banner-unreachable"   the datastore, or the webserver, is unreachable
//   data-test="badge-rejected"                        number of rejected changes
//   data-test="conflict" "keep-mine" "take-theirs" "bring-back" "gone"   another user changed or deleted the edited object
//   data-test="discard"                               discards the edits
//   data-test="upload" "drop" "file" "download" "preview" "version"   contents of resources
//   data-test="token-value" "copy" "done"             the value of a token, shown once
//   data-test="entry" (data-seq) "op-put" "op-delete" "pause" "older" "version" (data-kind)   the log
//   data-test="retry" "restore" "field-word" "theme-dark" "theme-light" "theme-system" "find"   controls that their names describe
//   data-test="field-query" "run" "mistake" "help" "search-state" "query" "row-count" "holder" "reason" "warning"   a search
//   data-test="stop" "background" "save-search" "share" "again" "download-text" "download-json" "download-csv"   its actions
//   data-test="histogram" "all-times" "result-row" "previous" "range" "next"   its rows
//   data-test="second-factor" "set-up-factor" "new-codes" "clear-factor" "codes-left" "prove-password" "field-Code" "qr" "seed" "prove"
//     "recovery-codes" "codes" "back"                a second factor, and sign-in with it
//   data-test="tokens-keep" "tokens-end" "tokens-named"   API tokens to keep or revoke when a password changes
//   data-test="all-users"                             switch of administrators that lists the objects of all users
//   data-test="toast" "failure" "empty"               messages
import { html, useEffect } from '../vendor/htm-preact-standalone.module.js';
import { Watched, useWatched } from './value.js';

export { Confirm, Dialog, FormDialog, confirm } from './dialog.js';
export { Toasts, attempt, toast } from './toast.js';
export { Area, Check, Choice, Field, Picker } from './fields.js';

/** Frame of a page: title, actions and contents. */
export function Page({ title, actions, back, children }) {
  useEffect(() => {
    document.title = `${title} – Gravwell`;
  }, [title]);
  return html`<div class="page">
    <header class="page-head">
      <div>
        ${back && html`<a class="back" href=${back.href}>‹ ${back.text}</a>`}
        <h1 tabindex="-1">${title}</h1>
      </div>
      <div class="actions">${actions}</div>
    </header>
    ${children}
  </div>`;
}

/** Shows the children once the data is loaded, until then a loading message or the error. */
export function Loaded({ live, children }) {
  if (live.data !== undefined) {
    return html`${live.error && html`<p class="failure" role="alert">${live.error.message}</p>`}${children}`;
  }
  if (!live.error) return html`<p class="loading">Loading …</p>`;
  return html`<div class="empty" role="alert">
    <p>${live.error.message}</p>
    <button onClick=${live.reload}>Try again</button>
  </div>`;
}

/**
 * A table that turns into cards on narrow screens.
 * Columns: { title, cell(row), kind? }, kind "number", "wide" or "actions". `nameOf(row)` names rows for tests.
 */
export function Table({ columns, rows, keyOf, nameOf, label, empty }) {
  if (rows.length === 0) return html`<div class="empty" data-test="empty">${empty}</div>`;
  return html`<div class="table-frame">
    <table aria-label=${label}>
      <thead>
        <tr>
          ${columns.map((column) => html`<th scope="col" class=${column.kind ?? ''}>${column.title}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) => html`<tr key=${keyOf(row)} data-row=${nameOf?.(row)} data-test=${nameOf && `row-${nameOf(row)}`}>
            ${columns.map(
              (column) => html`<td class=${column.kind ?? ''} data-label=${column.title}>
                <div>${column.cell(row)}</div>
              </td>`,
            )}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

export const Badge = ({ kind = '', test, title, children }) =>
  html`<span class="badge badge-${kind}" data-test=${test} title=${title}>${children}</span>`;

export const Pending = ({ of }) =>
  of.Synced === false &&
  html`<${Badge} kind="warn" test="pending" title="Stored on this webserver; not yet received by the datastore">pending<//>`;

const now = new Watched(Date.now());
setInterval(() => document.hidden || now.set(Date.now()), 10_000);

const STEPS = [
  [60, 'second', 1],
  [3600, 'minute', 60],
  [86_400, 'hour', 3600],
  [86_400 * 30, 'day', 86_400],
  [86_400 * 365, 'month', 86_400 * 30],
  [Infinity, 'year', 86_400 * 365],
];
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });

/** Returns whether a time means "never". */
export const isNever = (time) => !time || String(time).startsWith('0001-');

/** A timestamp relative to now, with the exact time on hover. */
export function Time({ at, never = 'never' }) {
  const present = useWatched(now);
  if (isNever(at)) return html`<span class="faint">${never}</span>`;
  const date = new Date(at);
  const seconds = (date.getTime() - Math.max(present, Date.now() - 10_000)) / 1000;
  const [, unit, size] = STEPS.find(([limit]) => Math.abs(seconds) < limit);
  const isNow = Math.abs(seconds) < 10;
  return html`<time datetime=${date.toISOString()} title=${date.toLocaleString()}>
    ${isNow ? 'just now' : relative.format(Math.round(seconds / size), unit)}
  </time>`;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function bytesText(bytes) {
  let [value, unit] = [Number(bytes), 0];
  while (value >= 1024 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export const Bytes = ({ of }) => html`<span title=${`${Number(of).toLocaleString('en')} bytes`}>${bytesText(of)}</span>`;

/** Formats a duration in milliseconds. */
export function spanText(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const parts = [[Math.floor(seconds / 86_400), 'd'], [Math.floor(seconds / 3600) % 24, 'h'], [Math.floor(seconds / 60) % 60, 'min'], [seconds % 60, 's']];
  const from = parts.findIndex(([number]) => number > 0);
  return from < 0 ? '0 s' : parts.slice(from, from + 2).map(([number, unit]) => `${number} ${unit}`).join(' ');
}

/** A list of terms and values. */
export const Facts = ({ of }) =>
  html`<dl class="facts">
    ${of.filter(Boolean).map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>`;
