// Clients whose app does nothing at the end: neither closes them nor looks at a status.
import { createRequire } from "node:module";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSourcePlus } from "event-source-plus";
import { createEventSource } from "eventsource-client";
import ReactNativeEventSource from "./metro.mjs";

const LaunchDarkly = createRequire(import.meta.url)("launchdarkly-eventsource").EventSource;
const from = (url, cursor) => `${url}?last_event_id=${cursor}`;
const forEver = () => new Promise(() => {});

export const eventSource = (url, cursor) => { new EventSource(from(url, cursor)); return forEver(); };
export const fetchEvent = (url, cursor) =>
  fetchEventSource(url, { openWhenHidden: true, headers: { "last-event-id": cursor } });
export const reactNative = (url, cursor) => {
  const events = new ReactNativeEventSource(from(url, cursor));
  events.addEventListener("done", () => {});
  return forEver();
};
export const plus = (url, cursor) => {
  const events = new EventSourcePlus(from(url, cursor));
  events.listen({ onMessage() {} });
  return forEver();
};
export const client = (url, cursor) => { createEventSource({ url: from(url, cursor), onMessage() {} }); return forEver(); };
export const launchDarkly = (url, cursor) => { new LaunchDarkly(from(url, cursor)).onerror = () => {}; return forEver(); };
