// Which addresses a link may have, and what character references stand for.

const NAMED = {
  __proto__: null, amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™",
  hellip: "…", ndash: "–", mdash: "—", bull: "•", middot: "·", times: "×", deg: "°", larr: "←", rarr: "→",
};

/**
 * All numbers, and the names that are met in prose. The whole list is 30 kB, and a page that trusts no HTML has no other
 * way to it. An unknown name stays as it is.
 * @param {string} text
 */
export const decode = (text) =>
  text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (all, decimal, hex, name) => {
    if (name) return /** @type {Record<string, string>} */ (/** @type {unknown} */ (NAMED))[name] ?? all;
    const code = decimal ? parseInt(decimal, 10) : parseInt(hex, 16);
    return !code || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? "\ufffd" : String.fromCodePoint(code);
  });

/**
 * The address if a link may have it, else nothing. Looked at as browsers will read it: they drop tabs and line ends
 * wherever they are, and control characters around it, and take a backslash for a slash. `//host` is another host.
 * @param {string} href
 */
export function allowed(href) {
  const url = href.replace(/[\t\n\r]/g, "").replace(/^[\0- ]+|[\0- ]+$/g, "");
  return /^(?:https?:\/\/|mailto:|#|\/(?![/\\]))/i.test(url) ? url : "";
}
