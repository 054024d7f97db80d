// Preview of the first bytes of a resource.
import { html } from '../vendor/htm-preact-standalone.module.js';
import { useLive } from './live.js';
import { Loaded, bytesText } from './ui.js';

const BYTES = 1024;
const PER_LINE = 16;

function hexText(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += PER_LINE) {
    const part = [...bytes.slice(at, at + PER_LINE)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const letters = part.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${digits.padEnd(PER_LINE * 3 - 1)}  ${letters}`);
  }
  return lines.join('\n');
}

export function Preview({ guid, size, version }) {
  const path = size > 0 ? `/api/resources/${guid}/contenttype?bytes=${BYTES}&of=${encodeURIComponent(version)}` : null;
  const live = useLive(path, []);
  if (path === null) return html`<p class="hint" data-test="preview">This resource has no contents yet.</p>`;
  const { ContentType: kind = '', Body: body = '' } = live.data ?? {};
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  const text = kind.startsWith('text/') ? new TextDecoder().decode(bytes) : hexText(bytes);
  return html`<${Loaded} live=${live}>
    <p class="hint">${kind}${size > BYTES ? `, the first ${bytesText(BYTES)} of ${bytesText(size)}` : ''}</p>
    <pre class="code" tabindex="0" data-test="preview">${text}</pre>
  <//>`;
}
