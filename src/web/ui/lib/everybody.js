// The administrators' switch between what concerns them and everybody's objects.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Check } from './fields.js';
import { Watched, useWatched } from './value.js';

// Kept while one goes from page to page.
const isOn = new Watched(false);

/** Returns [query, switch]: what to add to the path of a list, and the control, if there is a choice. */
export function useEverybody(me) {
  const on = useWatched(isOn) && me.Admin;
  const control = me.Admin && html`<${Check} name="everybody" test="everybody" label="Everybody's" value=${on} onValue=${(value) => isOn.set(value)} />`;
  return [on ? '?admin=true' : '', control];
}
