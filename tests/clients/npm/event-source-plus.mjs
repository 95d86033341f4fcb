import { EventSourcePlus } from "event-source-plus";

export function follow(url, cursor, show) {
  return new Promise((resolve) => {
    const events = new EventSourcePlus(url);
    events.lastEventId = cursor;
    const listening = events.listen({
      onResponse({ response }) {
        if (response.status === 204 || (response.status >= 400 && response.status < 500)) listening.abort(response.status);
      },
      onMessage({ id, event, data }) {
        show(id, event, data);
        if (["done", "error", "cancelled"].includes(event)) listening.abort("ended");
      },
    });
    listening.onAbort(({ reason }) => resolve(reason));
  });
}
