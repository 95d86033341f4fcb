// @microsoft/fetch-event-source with nothing set that it does not ask for: its own cursor, its own idea of a cut.
import { fetchEventSource } from "@microsoft/fetch-event-source";

export async function follow(url, cursor, show) {
  await fetchEventSource(url, {
    openWhenHidden: true,
    headers: { "last-event-id": cursor },
    onmessage: ({ id, event, data }) => show(id, event, data),
  });
}
