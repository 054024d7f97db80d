// Choice whether API tokens stay valid when a password changes.
import { html, useEffect, useState } from '../vendor/htm-preact-standalone.module.js';
import { get } from './api.js';

/** Returns the API tokens of a user; empty if the signed-in user may not list them. */
export function useTokensOf(uid, query = '') {
  const [tokens, setTokens] = useState([]);
  useEffect(() => {
    get(`/api/tokens${query}`).then(
      (all) => setTokens(all.filter((token) => token.uid === Number(uid))),
      () => {},
    );
  }, [uid]);
  return tokens;
}

/** `value` is "keep" or "end". */
export function TokenChoice({ tokens, value, onValue }) {
  if (tokens.length === 0) return null;
  const names = tokens.map((token) => token.name || '(no name)').join(', ');
  const option = (name, text) => html`<label class="check">
    <input type="radio" name="Tokens" data-test=${`tokens-${name}`} checked=${value === name} onChange=${() => onValue(name)} />
    <span>${text}</span>
  </label>`;
  return html`<fieldset class="picker">
    <legend>API tokens</legend>
    <p class="hint" data-test="tokens-named">${names}</p>
    ${option('keep', 'Keep them: programs that use them continue to work')} ${option('end', 'Revoke them: programs that use them lose access')}
  </fieldset>`;
}
