/**
 * A place in the page where the next node goes. What stands before it is final. What stands behind it was shown while
 * its end was not known: it is taken again where it fits, so that a page changes no more than it must.
 *
 * @typedef {object} Place
 * @property {Element} el
 * @property {ChildNode | null} [at] the first node that is not final
 * @property {ChildNode | null} [first] the first that was put here
 */

/** @param {Element} el @returns {Place} */
export const inside = (el) => ({ el, at: el.firstChild });

/**
 * An element, at the place.
 *
 * @param {Place} place
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 */
export function put(place, tag, attributes = {}) {
  const element = place.el.ownerDocument.createElement(tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  const old = /** @type {Element | null | undefined} */ (place.at);
  return add(place, old?.cloneNode().isEqualNode(element) ? old : element);
}

/**
 * Text, at the place. Where it only grows the node stays, and with it what a reader has selected.
 *
 * @param {Place} place
 * @param {string} data
 */
export function write(place, data) {
  const old = /** @type {Text | null | undefined} */ (place.at);
  const node = old?.nodeType === 3 ? old : place.el.ownerDocument.createTextNode("");
  if (!data.startsWith(node.data)) node.data = data;
  else if (data.length > node.length) node.appendData(data.slice(node.length));
  return add(place, node);
}

/** @template {ChildNode} N @param {Place} place @param {N} node */
function add(place, node) {
  if (node === place.at) place.at = node.nextSibling;
  else place.el.insertBefore(node, place.at ?? null);
  place.first ??= node;
  return node;
}

/** Nothing more comes here: what was shown behind it goes. @param {Partial<Place>} place */
export function trim(place) {
  while (place.at) {
    const next = place.at.nextSibling;
    place.at.remove();
    place.at = next;
  }
}
