/** Which addresses a link may have, and what character references stand for. */

/** @type {Record<string, string>} */
const NAMED = {
  ...{ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…" },
  ...{ ndash: "–", mdash: "—", bull: "•", middot: "·", deg: "°", times: "×", larr: "←", rarr: "→" },
};

/**
 * The names that are met in prose; numbers are marked's. The whole list has 30 kB, and a page that trusts no HTML has
 * no other way to it. An unknown name stays as it is.
 *
 * @param {string} text
 */
export const decode = (text) =>
  text.replace(/&([a-z]+);/g, (all, name) => (Object.hasOwn(NAMED, name) ? NAMED[name] : all));

/**
 * The address if a link may have it, else nothing. Looked at as browsers will read it: they drop tabs and line ends
 * wherever they are, and control characters before it, and take a backslash for a slash. `//host` is another host.
 *
 * @param {string} href
 */
export function allowed(href) {
  const url = href.replace(/[\t\n\r]/g, "").replace(/^[\0- ]+/, "");
  return /^(?:https?:\/\/|mailto:|#|\/(?![/\\]))/i.test(url) ? url : "";
}
