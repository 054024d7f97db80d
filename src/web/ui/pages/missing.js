// The page for unknown addresses.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { Page } from '../lib/ui.js';

export function Missing() {
  return html`<${Page} title="Page not found">
    <div class="empty"><p>This page does not exist, or only administrators can view it.</p><a href="#/fleet">Go to the overview</a></div>
  <//>`;
}
