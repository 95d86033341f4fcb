// lastevent/native over React Native's XMLHttpRequest, as xhr.mjs plays it, and without what a phone lacks (phone.mjs):
// `node --import ./phone.mjs native.mjs trial '{"url": …}'` runs a trial and writes what came of it, as JSON.
import { XMLHttpRequest } from "./xhr.mjs";
import { followed, read } from "./native-trials.mjs";
import { xhr } from "lastevent/native";

/** Tells of the text one UTF-16 unit after the other: half a character is there for a while. */
class Halving extends XMLHttpRequest {
  hear(text) {
    for (const unit of text.split("")) super.hear(unit);
  }
}

/** Tells of nothing before it has a million characters, or everything. */
class AtOnce extends XMLHttpRequest {
  held = "";
  hear(text) {
    this.held += text;
    if (this.held.length >= 1_000_000) this.tell();
  }
  end() {
    this.tell();
    super.end();
  }
  tell() {
    super.hear(this.held);
    this.held = "";
  }
}

/** Is told to stop, and says nothing of it. */
class Deaf extends XMLHttpRequest {
  abort() {}
}

const kinds = { Plain: XMLHttpRequest, Halving, AtOnce, Deaf };
const failure = (promise) => promise.then(() => null, ({ name, message }) => ({ name, message }));

const trials = {
  async followed({ url, kind = "Plain" }) {
    globalThis.XMLHttpRequest = kinds[kind];
    return { ...(await followed(url)), longest: XMLHttpRequest.longest };
  },

  async read({ url, kind = "Plain", cursor }) {
    globalThis.XMLHttpRequest = kinds[kind];
    return read(url, cursor);
  },

  /** What a response says, as fetch's would. */
  async shape({ streams }) {
    const body = JSON.stringify({ producer: "external" });
    const started = await xhr(streams, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    const record = await started.json();
    const text = await xhr(streams + `/${record.id}/text`, { headers: new Headers({ Accept: "text/plain" }) });
    const missing = await xhr(streams + "/0123/events");
    return {
      started: { status: started.status, ok: started.ok, location: started.headers.get("location"), id: record.id },
      text: { status: text.status, at: text.headers.get("Last-Event-ID"), none: text.headers.get("x-none"), all: await text.text() },
      missing: { status: missing.status, ok: missing.ok, code: (await missing.json()).code, isUrl: missing.url === streams + "/0123/events" },
    };
  },

  /** `url`: of a stream that is open and has something. `nobody`: nothing listens. `silent`: something does. */
  async failures({ url, nobody, silent }) {
    const stopped = async (kind, state) => {
      globalThis.XMLHttpRequest = kinds[kind];
      const controller = new AbortController();
      const { signal } = controller;
      let failed;
      if (state === "waits") failed = failure(xhr(silent, { signal }));
      else {
        const reader = (await xhr(url, { signal })).body.getReader();
        await reader.read();
        failed = failure(reader.read());
      }
      setTimeout(() => controller.abort(), 50);
      return failed;
    };
    const gone = new AbortController();
    gone.abort();
    const left = (await xhr(url)).body.getReader();
    const waits = left.read().then(() => left.read());
    await left.cancel();
    return {
      nobody: await failure(xhr(nobody)),
      gone: await failure(xhr(url, { signal: gone.signal })),
      waits: await stopped("Plain", "waits"),
      reads: await stopped("Plain", "reads"),
      deafWaits: await stopped("Deaf", "waits"),
      deafReads: await stopped("Deaf", "reads"),
      cancelled: await waits,
    };
  },

  /** An app that is closed within an answer, and opened again. It goes on until the app has heard enough. */
  async phone({ url }) {
    const { followChat } = await import("./react-native-app.js");
    const { AppState, storage } = await import("./react-native.mjs");
    const first = followChat(url, "chat", "ann");
    const before = [];
    for await (const { id } of first) if (before.push(id) === 20) break;  // the app is closed
    const heard = AppState.listeners.size;
    const second = followChat(null, "chat", "ann");
    const after = [];
    const events = second[Symbol.asyncIterator]();
    after.push((await events.next()).value.id);
    AppState.become("background");
    const kept = JSON.parse(await storage.getItem("lastevent:chat")).answer.cursor;
    AppState.become("active");
    after.push((await events.next()).value.id);
    await second.cancel();
    for (let next; !(next = await events.next()).done; ) after.push(next.value.id);
    const { text } = await second.finished;
    return { before, after, text, kept, heard: [heard, AppState.listeners.size] };
  },

  async credentials({ url }) {
    const sent = [];
    globalThis.XMLHttpRequest = class extends XMLHttpRequest {
      send() {
        sent.push(this.withCredentials);
      }
    };
    for (const credentials of [undefined, "omit", "same-origin", "include"]) xhr(url, { credentials });
    return sent;
  },
};

globalThis.XMLHttpRequest = XMLHttpRequest;
const [, , name, options] = process.argv;
process.stdout.write(JSON.stringify(await trials[name](JSON.parse(options))), () => process.exit(0));
