// Maps addresses to pages.
import { KINDS } from './lib/kinds.js';
import { Backup } from './pages/backup.js';
import { Dashboard } from './pages/dashboard.js';
import { Dashboards } from './pages/dashboards.js';
import { Fleet } from './pages/fleet.js';
import { Groups } from './pages/groups.js';
import { History } from './pages/history.js';
import { Log } from './pages/log.js';
import { Missing } from './pages/missing.js';
import { Notifications } from './pages/notifications.js';
import { ObjectHistory } from './pages/object-history.js';
import { OwnedList } from './pages/owned-list.js';
import { OwnedObject } from './pages/owned-object.js';
import { Preferences } from './pages/preferences.js';
import { Profile } from './pages/profile.js';
import { Rejections } from './pages/rejections.js';
import { Resource } from './pages/resource.js';
import { Resources } from './pages/resources.js';
import { Search } from './pages/search.js';
import { Searches } from './pages/searches.js';
import { Tokens } from './pages/tokens.js';
import { User } from './pages/user.js';
import { Users } from './pages/users.js';

const KIND = `(?<kind>${Object.keys(KINDS).join('|')})`;

// Pattern, page, name in the navigation (null: that of the kind), whether the page is for administrators only.
const ROUTES = [
  [/^\/fleet$/, Fleet, 'fleet'],
  [/^\/users$/, Users, 'users'],
  [/^\/users\/(?<uid>\d+)$/, User, 'users', true],
  [/^\/groups$/, Groups, 'groups'],
  [/^\/profile$/, Profile, 'profile'],
  [/^\/dashboards$/, Dashboards, 'dashboards'],
  [/^\/dashboards\/(?<id>[\w-]+)$/, Dashboard, 'dashboards'],
  [/^\/resources$/, Resources, 'resources'],
  [/^\/resources\/(?<guid>[\w-]+)$/, Resource, 'resources'],
  [new RegExp(`^/${KIND}$`), OwnedList, null],
  [new RegExp(`^/${KIND}/(?<id>[\\w-]+)$`), OwnedObject, null],
  [/^\/preferences$/, Preferences, 'preferences'],
  [/^\/search$/, Search, 'search'],
  [/^\/search\/(?<id>\d+)$/, Search, 'search'],
  [/^\/searches$/, Searches, 'searches'],
  [/^\/history$/, History, 'history'],
  [/^\/log$/, Log, 'log', true],
  [/^\/log\/(?<collection>[^/]+)\/(?<address>.+)$/, ObjectHistory, 'log', true],
  [/^\/rejections$/, Rejections, 'rejections'],
  [/^\/notifications$/, Notifications, 'notifications'],
  [/^\/tokens$/, Tokens, 'tokens'],
  [/^\/backup$/, Backup, 'backup', true],
];

export function pageOf(hash, isAdmin) {
  for (const [pattern, page, name, isForAdmins] of ROUTES) {
    const found = pattern.exec(hash);
    if (found && (isAdmin || !isForAdmins)) return { page, name: name ?? found.groups.kind, parameters: found.groups ?? {} };
  }
  return { page: Missing, name: '', parameters: {} };
}
