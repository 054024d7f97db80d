// Names of users and groups.
import { useLive } from './live.js';

export const USERS = ['users', 'admins', 'locks', 'memberships', 'groups'];

/** { users, groups, user(uid), group(gid), groupOptions }: names are shown as numbers until they are loaded. */
export function usePeople() {
  const users = useLive('/api/users', USERS).data ?? [];
  const groups = useLive('/api/groups', ['groups']).data ?? [];
  const user = (uid) => users.find((one) => one.UID === uid)?.User ?? `user ${uid}`;
  const group = (gid) => groups.find((one) => one.GID === gid)?.Name ?? `group ${gid}`;
  return { users, groups, user, group, groupOptions: groups.map(({ GID, Name }) => [GID, Name]) };
}

/** Options of a group picker, including selected groups that were deleted, so that saving does not drop them silently. */
export function withGone(options, chosen) {
  const gone = chosen.filter((gid) => !options.some(([known]) => known === gid));
  return [...options, ...gone.map((gid) => [gid, `group ${gid} (deleted)`])];
}
