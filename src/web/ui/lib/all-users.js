// The administrators' switch between their own objects and the objects of all users.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Check } from './fields.js';
import { Watched, useWatched } from './value.js';

// Kept while the user moves between pages.
const isOn = new Watched(false);

/** Returns [query, control]: the query string for a list, and the switch, which is falsy for users who are not administrators. */
export function useAllUsers(me) {
  const on = useWatched(isOn) && me.Admin;
  const control = me.Admin && html`<${Check} name="all-users" test="all-users" label="Show objects of all users" value=${on} onValue=${(value) => isOn.set(value)} />`;
  return [on ? '?admin=true' : '', control];
}
