// Requests to the webserver. The session is an HttpOnly cookie: no script ever sees it.

import { Watched } from './value.js';

/** Invalid objects that answers left out, by what was asked; only administrators are told. */
export const leftOut = new Watched(new Map());

function noteLeftOut(path, response) {
  const keys = response.headers.get('Gravwell-Invalid-Keys') ?? undefined;
  if (leftOut.get().get(path) === keys) return;
  const next = new Map(leftOut.get());
  if (keys === undefined) next.delete(path);
  else next.set(path, keys);
  leftOut.set(next);
}

export class ApiError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }

  /** Somebody else changed the object since it was read. */
  get isConflict() {
    return this.status === 409 || this.status === 412;
  }
}

let signedOut = () => {};

/** Registers what happens when the session is over. */
export function onSignedOut(action) {
  signedOut = action;
}

let renewal = Promise.resolve();
let renewedAt = -1;

/** Does what gives this browser another session. What is read with the former one meanwhile is read again with the new one. */
export function renewing(action) {
  renewedAt = Infinity;
  const done = action().finally(() => {
    renewedAt = performance.now();
  });
  renewal = done.catch(() => {});
  return done;
}

const FALLBACKS = {
  0: 'The webserver cannot be reached.',
  404: 'There is no such thing (any more).',
  413: 'That is larger than the webserver accepts.',
  502: 'The webserver cannot be reached.',
  503: 'The webserver cannot do that now.',
};

/** Makes an error of an answer's status and text. */
export function errorOf(status, text) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Not ours: a proxy's page, or nothing at all.
  }
  const message = body?.Error || body?.Reason || FALLBACKS[status] || `The webserver answered with status ${status}.`;
  return new ApiError(status, message, body);
}

/** Sends a request; resolves to the text of the answer and its headers. `quiet`: 401 is an ordinary answer. */
export async function send(method, path, { body, headers = {}, quiet = false } = {}) {
  const options = { method, headers: { ...headers }, cache: 'no-store' };
  if (body !== undefined) {
    options.body = typeof body === 'string' || body instanceof FormData ? body : JSON.stringify(body);
    if (!(body instanceof FormData)) options.headers['Content-Type'] = 'application/json';
  }
  const began = performance.now();
  let response;
  let text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch {
    throw errorOf(0, '');
  }
  if (!response.ok) {
    if (response.status === 401 && !quiet) {
      if (method === 'GET' && began <= renewedAt) {
        await renewal;
        return send(method, path, { body, headers, quiet });
      }
      signedOut();
    }
    throw errorOf(response.status, text);
  }
  if (method === 'GET') noteLeftOut(path, response);
  return { text, etag: response.headers.get('ETag'), status: response.status };
}

async function parsed(method, path, options) {
  const { text } = await send(method, path, options);
  return text === '' ? null : JSON.parse(text);
}

export const get = (path, options) => parsed('GET', path, options);
export const post = (path, body, options) => parsed('POST', path, { ...options, body });
export const put = (path, body, options) => parsed('PUT', path, { ...options, body });
export const patch = (path, body, options) => parsed('PATCH', path, { ...options, body });
export const remove = (path, options) => parsed('DELETE', path, options);

/** The header that makes a change count only if nobody else made one. */
export const onlyIf = (etag) => ({ headers: etag ? { 'If-Match': etag } : {} });

/**
 * Sends a form with a file, telling how far it is; fetch cannot tell that.
 * Returns { done, cancel }: a promise of the parsed answer, and a way out.
 */
export function upload(method, path, form, onProgress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open(method, path);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(errorOf(0, ''));
    request.onabort = () => reject(new ApiError(-1, 'The upload was cancelled.', null));
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) {
        resolve(request.responseText === '' ? null : JSON.parse(request.responseText));
        return;
      }
      if (request.status === 401) signedOut();
      reject(errorOf(request.status, request.responseText));
    };
    request.send(form);
  });
  return { done, cancel: () => request.abort() };
}

/** Downloads what needs a header of its own, which a link cannot send; hands it to the browser as a file. */
export async function save(path, headers, name) {
  let response;
  try {
    response = await fetch(path, { headers, cache: 'no-store' });
  } catch {
    throw errorOf(0, '');
  }
  if (!response.ok) {
    if (response.status === 401) signedOut();
    throw errorOf(response.status, await response.text());
  }
  const told = /filename="?([^";]+)"?/.exec(response.headers.get('Content-Disposition') ?? '')?.[1];
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement('a');
  link.href = url;
  link.download = told ?? name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
