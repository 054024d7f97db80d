// Codes of second factors, in the form that the webserver accepts.

/** Adds a code to credentials: six digits are a code of the app, anything else is a recovery code. */
export function withCode(credentials, code) {
  const bare = code.replaceAll(/\s/g, '');
  if (bare === '') return { ...credentials, AuthType: 'None', AuthCode: '' };
  return { ...credentials, AuthType: /^\d{6}$/.test(bare) ? 'TOTP' : 'RecoveryCodes', AuthCode: bare };
}
