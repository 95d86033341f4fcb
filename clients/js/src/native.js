/** A `fetch` by XMLHttpRequest, for React Native, whose own gives no body before its end. */

const LIMIT = 256 * 1024; // characters: an XMLHttpRequest keeps all that has come, of a stream some 5 MB an hour

/**
 * Resolves at the headers. When LIMIT of an event stream has come, its body ends behind an event, and the response has
 * `again`: there is more for who asks once more, at once.
 *
 * @param {string} url
 * @param {any} [init] as of fetch
 * @returns {Promise<any>}
 */
export function xhr(url, { method = "GET", headers, body, credentials, signal } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const utf8 = new TextEncoder();
    /** @type {any} */
    let response;
    let isStream = false;
    let taken = 0;
    /** @type {{ text: string, error?: Error } | undefined} what there was in all */
    let over;
    /** @type {(() => void) | undefined} */
    let more; // what waits for it

    function finish(/** @type {NonNullable<typeof over>} */ end) {
      over ??= end;
      signal?.removeEventListener("abort", abort);
      if (end.error) reject(end.error);
      more?.();
    }

    function stop(/** @type {NonNullable<typeof over>} */ end) {
      finish(end);
      request.abort(); // which it need not hear
    }

    function abort() {
      stop({ text: "", error: signal.reason ?? Object.assign(new Error("Aborted"), { name: "AbortError" }) });
    }

    function respond() {
      const { status } = request;
      response ??= {
        status,
        ok: status > 199 && status < 300,
        again: false,
        get url() {
          return request.responseURL || url; // React Native knows it only after it has told of the headers
        },
        headers: { get: (/** @type {string} */ name) => request.getResponseHeader(name) },
        body: {
          getReader() {
            isStream = /^text\/event-stream/i.test(response.headers.get("content-type"));
            look();
            return { read: () => when(piece), cancel: async () => stop({ text: "" }) };
          },
        },
        text: async () => (await when(() => over)).text,
        json: async () => JSON.parse(await response.text()),
      };
      resolve(response);
    }

    function look() {
      // Not when it is done: React Native has the message of an error for its text then. `onload` tells them apart.
      if (over || request.readyState < 2 || request.readyState > 3) return;
      respond();
      const text = request.responseText;
      const end = text.lastIndexOf("\n\n") + 2;
      response.again = isStream && text.length >= LIMIT && end > 1; // or an event of that size would never come
      if (response.again) stop({ text: text.slice(0, end) });
      else more?.();
    }

    function piece() {
      const text = over ? over.text : request.responseText;
      const isHalf = (text.charCodeAt(text.length - 1) & 0xfc00) === 0xd800; // of a surrogate pair
      const value = text.slice(taken, text.length - Number(isHalf));
      taken += value.length;
      return value ? { done: false, value: utf8.encode(value) } : over && { done: true };
    }

    /** What `ready` gives, as soon as it gives anything. */
    const when = (/** @type {() => any} */ ready) =>
      new Promise((give, fail) => {
        more = () => {
          const value = over?.error ?? ready();
          if (!value) return;
          more = undefined;
          (over?.error ? fail : give)(value);
        };
        more();
      });

    if (signal?.aborted) return abort();
    signal?.addEventListener("abort", abort);
    request.open(method, url);
    new Headers(headers).forEach((value, name) => request.setRequestHeader(name, value));
    if (credentials === "include" || credentials === "omit") request.withCredentials = credentials === "include";
    request.onreadystatechange = request.onprogress = look;
    request.onload = () => {
      respond();
      finish({ text: request.responseText });
    };
    request.onerror = request.ontimeout = request.onabort = () =>
      finish({ text: "", error: new TypeError("Network request failed") });
    request.send(body);
  });
}
