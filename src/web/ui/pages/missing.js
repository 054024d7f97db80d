// The page for unknown addresses.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Page } from '../lib/ui.js';

export function Missing() {
  return html`<${Page} title="There is no such page">
    <div class="empty"><p>It does not exist, or it is for administrators.</p><a href="#/fleet">To the overview</a></div>
  <//>`;
}
