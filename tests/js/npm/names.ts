// Every public name, as docs use them: for the type checker, never run.
import { cancel, empty, fold, follow, partial, send, start, StreamError } from "lastevent";
import type {
  Answer, CallOptions, CancelOptions, Connection, Ending, Environment, FollowOptions, Input, Notice, SendOptions,
  Snapshot, StartOptions, Store, Stream, StreamEvent, SubAgent, Tool, WhyToken,
} from "lastevent";
import { markdown, type MarkdownView } from "lastevent/markdown";
import { xhr } from "lastevent/native";
import { useAnswer, type LiveAnswer } from "lastevent/react";
import { forward, type ForwardOptions } from "lastevent/server";
import { connect, type Socket, type SocketOptions } from "lastevent/socket";

const url = "/v1/streams/id/events";
const env: Partial<Environment> = { signs: (wake, sleep) => { wake(); sleep(true); return () => {}; } };
const phone: Store = { getItem: async () => null, setItem: async () => {}, removeItem: async () => {} };
const calls: CallOptions = { token: async (why: WhyToken) => (why === "refused" ? null : "t"), credentials: "include" };
const options: FollowOptions = { url, storage: localStorage, key: "k", user: "u", hidden: "follow", share: true, ...calls };

const stream: Stream = follow(options);
const off: () => void = stream.subscribe(({ answer, connection }: Snapshot) => {
  const state: Connection["state"] = connection.state;
  const text: string = connection.error?.message ?? answer.status ?? answer.text;
  console.log(state, text);
});
off();
for await (const { id, event, data } of stream) console.log(id.toFixed(), event, data.text);
const answer: Answer = await stream.finished.catch((error: StreamError) => {
  console.log(error.code, error.status);
  return stream.answer;
});
const tools: Tool[] = answer.tools;
const agent: SubAgent | undefined = answer.agents["r.1"];
const ending: Ending | null = answer.ending;
console.log(tools[0]?.args, agent?.text, ending?.stop_reason, stream.url, stream.getSnapshot().connection.tries);
await stream.cancel("user");
await stream.send({ data: { a: 1 }, interrupt: true });
stream.stop();

const asked: StartOptions = { url: "/v1/streams", body: { prompt: "x" }, storage: phone, key: "k", env, fetch: xhr };
start(asked);
follow({ storage: phone, key: "k" });
const cancelling: CancelOptions = { url, reason: "user", ...calls };
const input: Input = "wait";
const sending: SendOptions = { url, input };
await cancel(cancelling);
await send(sending);

const event: StreamEvent = { id: 1, event: "text_delta", data: { text: "a" } };
const notice: Notice = { id: null, event: "gap", data: {} };
const folded: Answer = fold(fold(empty(), event), notice);
const args: unknown = partial('{"a":');
console.log(folded.text, args);

const view: MarkdownView = markdown(document.body);
view.set(folded.text);
view.end();

function Page() {
  const answer: LiveAnswer = useAnswer({ url, storage: localStorage, key: "k" });
  useAnswer(null);
  useAnswer(stream);
  return answer.connection.state === "open" ? answer.text : String(answer.cancel("user"));
}

const forwarding: ForwardOptions = { server: "https://le.test", key: "sk", path: url, location: (id) => `/api/${id}` };
const route = (request: Request): Promise<Response> => forward(request, forwarding);
console.log(Page, route);

const wire: SocketOptions = { url: "/v1/socket", WebSocket: null, fetch: xhr, env };
const socket: Socket = connect(wire);
start({ ...asked, fetch: socket.fetch });
await cancel({ url, fetch: socket.fetch });
socket.close();

// @ts-expect-error a start has a body
start({ url });
// @ts-expect-error there is no such state
stream.connection.state === "closed";
// @ts-expect-error nor such a name
answer.message;
