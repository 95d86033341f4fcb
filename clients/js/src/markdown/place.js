// A place in the page where the next node goes. What stands before it is final. What stands behind it was shown while its
// end was not known: it is taken again where it fits, so that a page changes no more than it must.

/**
 * @typedef {object} Place
 * @property {Element} el
 * @property {ChildNode | null} [at] the first node that is not final
 * @property {ChildNode | null} [first] the first that was put here
 */

/** @param {Element} el @returns {Place} */
export const inside = (el) => ({ el, at: el.firstChild });

/**
 * An element, at the place.
 * @param {Place} place @param {string} tag @param {Record<string, string>} [attributes]
 */
export function put(place, tag, attributes = {}) {
  const names = Object.keys(attributes);
  const old = /** @type {Element | null} */ (place.at);
  const fits = old?.localName === tag && old.attributes.length === names.length;
  const element = fits ? old : place.el.ownerDocument.createElement(tag);
  for (const name of names) {
    if (element.getAttribute(name) !== attributes[name]) element.setAttribute(name, attributes[name]);
  }
  add(place, element);
  return element;
}

/**
 * Text, at the place. Where it only grows the node stays, and with it what a reader has selected.
 * @param {Place} place @param {string} data
 */
export function write(place, data) {
  const old = /** @type {Text | null} */ (place.at);
  const node = old?.nodeType === 3 ? old : place.el.ownerDocument.createTextNode(data);
  if (node.data !== data) {
    if (data.startsWith(node.data)) node.appendData(data.slice(node.length));
    else node.data = data;
  }
  add(place, node);
  return node;
}

/** @param {Place} place @param {ChildNode} node */
function add(place, node) {
  if (node === place.at) place.at = node.nextSibling;
  else place.el.insertBefore(node, place.at ?? null);
  place.first ??= node;
}

/** Nothing more comes here: what was shown behind it goes. @param {Partial<Place>} place */
export function trim(place) {
  while (place.at) {
    const next = place.at.nextSibling;
    place.at.remove();
    place.at = next;
  }
}
