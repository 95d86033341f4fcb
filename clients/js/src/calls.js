/** Single requests: how they are sent, and what a refusal says. */

import { StreamError } from "./error.js";

/** @import { CallOptions, CancelOptions, SendOptions, WhyToken } from "./index.js" */

/** The address of another call of the same stream. */
export const beside = (/** @type {string} */ url, /** @type {string} */ call) =>
  url.replace(/(\/events)?(?=$|[?#])/, `/${call}`);

/** @param {CallOptions} options */
export function caller({ token, headers, credentials, fetch = globalThis.fetch }) {
  /** @type {string | null | undefined} */
  let bearer;
  return {
    isRenewable: typeof token === "function",

    /** Ask for the token, if none is known or there is a reason. */
    async authorize(/** @type {WhyToken} */ why) {
      if (typeof token !== "function") bearer = token;
      else if (why || bearer === undefined) {
        const given = await token(why);
        if (/^$|[^!-~]/.test(/** @type {string} */ (given))) throw new Error("no token"); // an error page: ask again, as after no network
        bearer = given;
      }
    },

    /** @returns {Promise<any>} */
    send: (/** @type {string} */ url, /** @type {any} */ { body, headers: more, ...init }) =>
      fetch(url, {
        ...init,
        credentials,
        method: body ? "POST" : "GET",
        body: body && JSON.stringify(body),
        headers: {
          ...headers,
          ...(bearer && { Authorization: `Bearer ${bearer}` }),
          ...(body && { "Content-Type": "application/json" }),
          ...more,
        },
      }),
  };
}

/** What an answer that is none says (RFC 9457). */
export async function refusal(/** @type {any} */ response) {
  const { code = "not_a_stream", detail, title } = (await response.json().catch(() => null)) ?? {};
  return new StreamError(code, response.status, detail ?? title ?? `HTTP ${response.status}`);
}

async function post(/** @type {CallOptions & { url: string }} */ options, /** @type {string} */ call, /** @type {object} */ body) {
  const { isRenewable, authorize, send } = caller(options);
  await authorize(undefined);
  const request = () => send(beside(options.url, call), { body, signal: options.signal });
  let response = await request();
  if (response.status === 401 && isRenewable) {
    await authorize("refused");
    response = await request();
  }
  if (!response.ok) throw await refusal(response);
  return response.json();
}

export const cancel = (/** @type {CancelOptions} */ options) =>
  post(options, "cancel", { reason: options.reason });

export const send = (/** @type {SendOptions} */ options) =>
  post(options, "input", typeof options.input === "string" ? { text: options.input } : options.input);
