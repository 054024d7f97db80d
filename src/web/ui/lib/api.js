// Requests to the webserver. The session is an HttpOnly cookie, which scripts cannot read.

import { Watched } from './value.js';

/** Keys of invalid objects that responses omitted, by path. Only administrators receive them. */
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

  /** Returns whether another user changed the object since it was read. */
  get isConflict() {
    return this.status === 409 || this.status === 412;
  }
}

let signedOut = () => {};

/** Registers an action that runs when the session has ended. */
export function onSignedOut(action) {
  signedOut = action;
}

let renewal = Promise.resolve();
let renewedAt = -1;

/** Runs an action that replaces the session. Reads that fail with the old session are repeated with the new one. */
export function renewing(action) {
  renewedAt = Infinity;
  const done = action().finally(() => {
    renewedAt = performance.now();
  });
  renewal = done.catch(() => {});
  return done;
}

const FALLBACKS = {
  0: 'Cannot reach the webserver. Check your connection and try again.',
  404: 'Not found. It may have been deleted.',
  413: 'Your request is larger than the webserver accepts.',
  502: 'Cannot reach the webserver. Try again later.',
  503: 'The webserver is temporarily unavailable. Try again later.',
};

/** Creates an error from the status and text of a response. */
export function errorOf(status, text) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // The response does not come from the webserver: a page of a proxy, or an empty body.
  }
  const message = body?.Error || body?.Reason || FALLBACKS[status] || `The webserver returned status ${status}.`;
  return new ApiError(status, message, body);
}

/** Sends a request; resolves to the text, ETag and status of the response. `quiet`: status 401 does not end the session. */
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

/** Header that makes a write fail if the object has changed since it was read. */
export const onlyIf = (etag) => ({ headers: etag ? { 'If-Match': etag } : {} });

/**
 * Sends a form with a file and reports progress, which fetch does not support.
 * Returns { done, cancel }: a promise of the parsed response, and a function that cancels the upload.
 */
export function upload(method, path, form, onProgress) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open(method, path);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(errorOf(0, ''));
    request.onabort = () => reject(new ApiError(-1, 'Upload cancelled.', null));
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

/** Downloads a file with request headers, which a link cannot send, and saves it. */
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
  const suggested = /filename="?([^";]+)"?/.exec(response.headers.get('Content-Disposition') ?? '')?.[1];
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement('a');
  link.href = url;
  link.download = suggested ?? name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
