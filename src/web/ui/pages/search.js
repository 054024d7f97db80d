// The search form and the results of a search.
import { html, useEffect, useRef, useState } from '../vendor/htm-preact-standalone.module.js';
import { post } from '../lib/api.js';
import { Help, Mistake, RANGES, asked, rangeOf } from '../lib/query.js';
import { Choice, Check, Page } from '../lib/ui.js';
import { SearchResults } from './search-results.js';

const TYPING_MS = 400;
const SAMPLE = 'tag=audit since=-1h "term" -excluded | select(.op == "delete") | count by user';

/** Validates the query on the webserver while the user types. Returns null while unknown or if the query is valid. */
function useVerdict(query) {
  const [verdict, setVerdict] = useState(null);
  useEffect(() => {
    let isOld = false;
    const ask = async () => {
      try {
        const found = await post('/api/parse', { SearchString: query });
        if (!isOld) setVerdict(found.ParseError ? { message: found.ParseError, column: found.Column } : null);
      } catch {
        // Errors are reported when the search is started.
      }
    };
    const timer = query.trim() === '' ? 0 : setTimeout(ask, TYPING_MS);
    if (!timer) setVerdict(null);
    return () => {
      isOld = true;
      clearTimeout(timer);
    };
  }, [query]);
  return verdict;
}

function Form({ onBegun }) {
  const [query, setQuery] = useState(asked.get().query);
  const [range, setRange] = useState(asked.get().range);
  const [isBackground, setBackground] = useState(false);
  const [refused, setRefused] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const area = useRef(null);
  const verdict = useVerdict(query);
  useEffect(() => asked.set({ query, range }), [query, range]);
  // An opened search fills in its query unless the form contains another one.
  useEffect(() => asked.watch((next) => next.query !== '' && setQuery((typed) => typed || next.query)), []);
  useEffect(() => area.current?.focus(), []);
  const begin = async (event) => {
    event?.preventDefault();
    setBusy(true);
    setRefused(null);
    try {
      const begun = await post('/api/searchctrl/launch', { SearchString: query, ...rangeOf(range), Background: isBackground });
      onBegun(begun.SearchID);
    } catch (error) {
      setRefused({ message: error.message.replace(/^column \d+: /, ''), column: error.body?.Column });
    }
    setBusy(false);
  };
  const pressed = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) begin(event);
  };
  const changed = (event) => {
    setQuery(event.target.value);
    setRefused(null);
  };
  return html`<form class="card search-form" onSubmit=${begin}>
    <div class="field">
      <label for="query">Query</label>
      <textarea id="query" ref=${area} class="code" rows="3" spellcheck="false" autocapitalize="off" data-test="field-query" placeholder=${SAMPLE} value=${query} onInput=${changed} onKeyDown=${pressed} aria-describedby="query-mistake" aria-invalid=${refused ?? verdict ? 'true' : undefined}></textarea>
      <${Mistake} query=${query} of=${refused ?? verdict} />
    </div>
    <div class="search-controls">
      <${Choice} name="range" label="Time range" value=${range} onValue=${setRange} options=${RANGES} />
      <${Check} name="background" label="Keep for a week" value=${isBackground} onValue=${setBackground} />
      <span class="fill"></span>
      <button type="submit" class="primary" data-test="run" disabled=${isBusy || query.trim() === ''}>Search</button>
    </div>
    <${Help} onUse=${setQuery} />
  </form>`;
}

export function Search({ me, id }) {
  const begun = (next) => {
    location.hash = `#/search/${next}`;
  };
  return html`<${Page} title="Search" actions=${html`<a class="button" href="#/searches" data-test="all-searches">All searches</a>`}>
    <${Form} key="form" onBegun=${begun} />
    ${id && html`<${SearchResults} key=${id} me=${me} id=${id} />`}
  <//>`;
}
