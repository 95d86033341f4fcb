// What an agent takes, by the JSON Schema of its input: the forms to write it in, and a beginning. Pure functions.

const DEEPEST = 4;

/** "prompt" (messages), "text" (a JSON string, written without quotes), "json". The first is the likeliest. */
export function formsOf(schema) {
  if (schema === null) return ["prompt", "text", "json"]; // any will do, as for an agent with a model
  return schema.type === "string" ? ["text"] : ["json"];
}

/** A value with the members that must be there, for people to fill in. */
export const beginningOf = (schema) => valueOf(schema ?? {}, schema, DEEPEST);

function valueOf(given, root, depth) {
  const schema = resolved(given, root);
  if (schema.default !== undefined) return schema.default;
  if (Array.isArray(schema.examples) && schema.examples.length > 0) return schema.examples[0];
  if (schema.const !== undefined) return schema.const;
  if (Array.isArray(schema.enum)) return schema.enum[0];
  const [choice] = schema.anyOf ?? schema.oneOf ?? [];
  if (choice) return valueOf(choice, root, depth);
  if (schema.type === "object" || schema.properties) return membersOf(schema, root, depth);
  if (schema.type === "array") return [];
  if (schema.type === "null") return null;
  if (schema.type === "boolean") return false;
  const isNumber = schema.type === "integer" || schema.type === "number";
  return isNumber ? (schema.minimum ?? (schema.exclusiveMinimum ?? -1) + 1) : "";
}

function membersOf(schema, root, depth) {
  if (depth === 0) return {};
  const names = Array.isArray(schema.required) ? schema.required : [];
  return Object.fromEntries(names.map((name) => [name, valueOf(schema.properties?.[name] ?? {}, root, depth - 1)]));
}

/** A `$ref` leads to a place in the schema itself. */
function resolved(schema, root) {
  if (typeof schema !== "object" || schema === null) return {};
  if (typeof schema.$ref !== "string") return schema;
  const found = schema.$ref.split("/").slice(1).reduce((at, name) => at?.[name], root);
  return typeof found?.$ref === "string" || !found ? {} : found;
}
