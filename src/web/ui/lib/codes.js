// Codes of second factors, as the webserver takes them.

/** What is sent with a code: six digits are the app's, everything else is a recovery code. */
export function withCode(credentials, code) {
  const bare = code.replaceAll(/\s/g, '');
  if (bare === '') return { ...credentials, AuthType: 'None', AuthCode: '' };
  return { ...credentials, AuthType: /^\d{6}$/.test(bare) ? 'TOTP' : 'RecoveryCodes', AuthCode: bare };
}
