/** What an app imports; the types are in index.d.ts. */

export { cancel, send } from "./calls.js";
export { StreamError } from "./error.js";
export { empty, fold } from "./fold.js";
export { partial } from "./partial.js";
export { follow, start } from "./stream.js";
