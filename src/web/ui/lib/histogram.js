// Histogram of the rows of a search over its time range; the user can select a bar.
import { html, useEffect } from '../vendor/htm-preact-standalone.module.js';
import { useLive } from './live.js';

const HEIGHT = 48;
const BAR = 8;
const RUNNING_MS = 1_000;

const local = (time) => new Date(time).toLocaleString();

export function Histogram({ search, between, onBetween }) {
  const isRunning = search.Progress === 'running';
  const live = useLive(`/api/searchctrl/${search.ID}/stats/overview`, [], { everyMs: isRunning ? RUNNING_MS : 0 });
  useEffect(() => {
    live.reload();
  }, [search.Progress]);
  const bars = live.data?.Stats ?? [];
  const most = Math.max(0, ...bars.map((bar) => bar.Count));
  // Rows of resources have no timestamps.
  if (most === 0) return null;
  const end = (at) => bars[at + 1]?.TS ?? search.EndRange;
  const chosen = (bar) => between?.[0] === bar.TS;
  return html`<section class="card">
    <header class="card-head"><h2>Timeline</h2><span class="hint">Select a bar to see its rows.</span></header>
    <svg class="histogram" viewBox=${`0 0 ${bars.length * BAR} ${HEIGHT}`} preserveAspectRatio="none" role="group" aria-label="Rows over time" data-test="histogram">
      ${bars.map((bar, at) => {
        const height = bar.Count === 0 ? 0 : Math.max(2, (bar.Count / most) * HEIGHT);
        const choose = () => bar.Count > 0 && onBetween(chosen(bar) ? null : [bar.TS, end(at)]);
        const text = `${bar.Count} ${bar.Count === 1 ? 'row' : 'rows'} from ${local(bar.TS)} to ${local(end(at))}`;
        return html`<g key=${bar.TS} role="button" tabindex=${bar.Count > 0 ? 0 : -1} aria-label=${text} aria-pressed=${String(chosen(bar))} onClick=${choose} onKeyDown=${(event) => event.key === 'Enter' && choose()}>
          <title>${text}</title>
          <rect class="slot" x=${at * BAR} y="0" width=${BAR} height=${HEIGHT} />
          <rect class=${chosen(bar) ? 'bar bar-chosen' : 'bar'} x=${at * BAR + 1} y=${HEIGHT - height} width=${BAR - 2} height=${height} />
        </g>`;
      })}
    </svg>
    <div class="histogram-ends"><span>${local(search.StartRange)}</span><span>${local(search.EndRange)}</span></div>
  </section>`;
}
