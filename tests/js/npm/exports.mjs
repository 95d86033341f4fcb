// Writes what the package exports, as JSON: entry → names. `node exports.mjs`
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const { exports } = JSON.parse(readFileSync(fileURLToPath(import.meta.resolve("lastevent/package.json")), "utf8"));
const found = {};
for (const entry of Object.keys(exports)) {
  if (entry === "./package.json") continue;
  found[entry] = Object.keys(await import(`lastevent${entry.slice(1)}`)).sort();
}
console.log(JSON.stringify(found));
