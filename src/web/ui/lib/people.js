// Names of users and groups, which nearly every page shows.
import { useLive } from './live.js';

export const USERS = ['users', 'admins', 'locks', 'memberships', 'groups'];

/** { users, groups, user(uid), group(gid), groupOptions }: names stay numbers until they are read. */
export function usePeople() {
  const users = useLive('/api/users', USERS).data ?? [];
  const groups = useLive('/api/groups', ['groups']).data ?? [];
  const user = (uid) => users.find((one) => one.UID === uid)?.User ?? `user ${uid}`;
  const group = (gid) => groups.find((one) => one.GID === gid)?.Name ?? `group ${gid}`;
  return { users, groups, user, group, groupOptions: groups.map(({ GID, Name }) => [GID, Name]) };
}

/** Groups to choose from; also those that are chosen but gone, so that saving does not drop them unseen. */
export function withGone(options, chosen) {
  const gone = chosen.filter((gid) => !options.some(([known]) => known === gid));
  return [...options, ...gone.map((gid) => [gid, `group ${gid} (gone)`])];
}
