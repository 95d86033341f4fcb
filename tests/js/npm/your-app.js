// What docs/CLIENTS.md leaves to an app: who asks, and whose a stream is.
export const userOf = async (request) => request.headers.get("x-user");
export const isTheirs = async (user, id) => user === "ann" && Boolean(id);
