// It sends a Last-Event-ID that it was given for ever, and its own beside none: so the kept cursor stands in the query.
import { createRequire } from "node:module";

const { EventSource } = createRequire(import.meta.url)("launchdarkly-eventsource");
const KINDS = ["queued", "start", "text_delta", "done", "cancelled"];

export function follow(url, cursor, show) {
  return new Promise((resolve) => {
    const events = new EventSource(`${url}?last_event_id=${cursor}`);
    for (const kind of KINDS) events.addEventListener(kind, (event) => {
      show(event.lastEventId, kind, event.data);
      if (kind === "done" || kind === "cancelled") { events.close(); resolve("ended"); }
    });
    events.onerror = (event) => { if (event.data === undefined && event.status >= 400) { events.close(); resolve(event.status); } };
    events.onclosed = () => resolve("closed");
  });
}
