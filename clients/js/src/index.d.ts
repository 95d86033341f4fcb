/** What an answer is, and how it is followed. The API behind it: docs/API.md of the server. */

/** One event of a stream. Ids only grow; a notice of the server's (`gap`, `token_expiring`) has none. */
export interface StreamEvent<Data = any> {
  id: number;
  event: string;
  data: Data;
}

export interface Notice<Data = any> {
  id: null;
  event: string;
  data: Data;
}

/** A call of a tool. What its events say besides is here too: `title`, `client`, `replayed`, `duration_ms`, `turn`, `agent`. */
export interface Tool {
  id: string;
  name: string;
  state: "running" | "done" | "error";
  /** What has come of the arguments, as it came. */
  json: string;
  /** The arguments as far as they are known: while they come, at each doubling of their length. */
  args?: any;
  /** You must run it, and give its result back in the next request. */
  client?: boolean;
  title?: string;
  /** It has not run again: a new attempt tells what an earlier one did. */
  replayed?: boolean;
  progress?: Record<string, any>;
  output?: any;
  code?: string;
  message?: string;
  duration_ms?: number;
  [said: string]: any;
}

/** An agent that the answering one asked. Its text is no part of the answer. */
export interface SubAgent {
  state: "running" | "done" | "error";
  text: string;
  parent?: string;
  [said: string]: any;
}

export interface Ending {
  stop_reason?: string;
  reason?: string;
  by?: string;
  code?: string;
  message?: string;
  recoverable?: boolean;
  result?: any;
  [said: string]: any;
}

/** The answer so far. It is never changed: each event makes a new one, in which what did not change is the same object. */
export interface Answer {
  /** The version of this form. */
  v: 1;
  /** The id of the last event in it; 0: none. */
  cursor: number;
  /** `error`: the generation failed, and `error` says why; the text so far stays. */
  state: "new" | "queued" | "running" | "done" | "error" | "cancelled";
  attempt: number;
  /** How often what was said was taken back. */
  restarts: number;
  text: string;
  thinking: string;
  tools: Tool[];
  /** For the person who waits, until there is text. */
  status: string | null;
  usage: Record<string, any> | null;
  /** The data of the last event: of `done`, `error` or `cancelled`. */
  ending: Ending | null;
  error: Ending | null;
  /** Events had been deleted before they could be read. The text is whole; of the rest something is missing. */
  incomplete: boolean;
  /** What the agent was told. */
  inputs: Record<string, any>[];
  agents: Record<string, SubAgent>;
  citations: Record<string, any>[];
  approvals: Record<string, any>[];
  sentences: Record<string, any>[];
  /** The last 100 events of kinds that this version does not know. */
  other: StreamEvent[];
  model: string | null;
  agent: string | null;
}

export interface Connection {
  /**
   * `idle`: there is no stream yet. `waiting`: for the next try. `away`: the app is hidden, and nothing is connected.
   * `listening`: another tab follows. The last three are for good.
   */
  state: "idle" | "connecting" | "open" | "waiting" | "away" | "listening" | "ended" | "stopped" | "failed";
  /** Connections in a row that brought nothing new; 0 while there is one. */
  tries: number;
  /** ms until the next try; 0 if none is due. */
  wait: number;
  /** Why the last connection ended, or why it failed for good. */
  error: Error | null;
}

export interface Snapshot {
  answer: Answer;
  connection: Connection;
}

/** `undefined`: the first one. `refused`: the server took the last one no longer (401). `expiring`: it is over soon. */
export type WhyToken = undefined | "refused" | "expiring";

/** Synchronous (localStorage) or asynchronous (AsyncStorage). */
export interface Store {
  getItem(key: string): string | null | Promise<string | null>;
  setItem(key: string, value: string): unknown;
  removeItem(key: string): unknown;
}

/** What the world is: for tests, and for phones, which tell `signs` in another way than browsers. */
export interface Environment {
  /** ms; never jumps. */
  now(): number;
  /** ms since 1970. */
  wall(): number;
  /** 0 ≤ x < 1. */
  random(): number;
  timer(ms: number, run: () => void): () => void;
  /** `run` before the next painting, or soon if nothing is painted. */
  frame(run: () => void): () => void;
  /** `wake`: there is a network again, or the app is in front. `sleep`: it is hidden; with true, frozen or gone. */
  signs(wake: () => void, sleep: (gone?: boolean) => void): () => void;
}

export interface CallOptions {
  token?: string | ((why: WhyToken) => string | null | undefined | Promise<string | null | undefined>);
  headers?: Record<string, string>;
  credentials?: "omit" | "same-origin" | "include";
  fetch?: (url: string, init?: any) => Promise<any>;
  signal?: AbortSignal;
}

export interface FollowOptions extends CallOptions {
  /** Of the stream's `/events`. Without it the stream is the one that `storage` has under `key`; if it has none, `idle`. */
  url?: string | null;
  storage?: Store | null;
  /** The answer's place in the storage, and among the tabs. */
  key?: string;
  /** Whose it is: what another user left under the key is dropped. */
  user?: string;
  /** One connection for all tabs that follow this stream with this key. */
  share?: boolean;
  /** `let-go` (the default): after 15 s hidden the connection is closed, and taken up in front. */
  hidden?: "let-go" | "follow";
  /** ms without a sign of life after which a connection is dead; default 40,000. */
  silence?: number;
  env?: Partial<Environment>;
}

export interface StartOptions extends FollowOptions {
  /** Of the collection: `…/v1/streams`. */
  url: string;
  /** As POST /v1/streams takes it. */
  body: Record<string, any>;
}

export interface CancelOptions extends CallOptions {
  url: string;
  reason?: string;
}

export interface SendOptions extends CallOptions {
  url: string;
  input: Input;
}

/** A text, or `{text}` or `{data}`, with `interrupt: true` to end what the agent is saying. */
export type Input = string | { text?: string; data?: any; interrupt?: boolean };

export interface Stream extends AsyncIterable<StreamEvent> {
  readonly answer: Answer;
  readonly connection: Connection;
  /** Of its `/events`; null until it is known. */
  readonly url: string | null;
  /** Called at most once a frame; returns what ends it. */
  subscribe(listener: (snapshot: Snapshot) => void): () => void;
  getSnapshot(): Snapshot;
  /** The answer, when it has ended (also with `error` and `cancelled`) or was stopped. Rejects with a StreamError only. */
  readonly finished: Promise<Answer>;
  /** Nothing is sent from here on. The generation goes on; what is kept is kept. */
  stop(): void;
  /** Ends the generation, for everybody. */
  cancel(reason?: string): Promise<any>;
  /** Tells a running agent something. */
  send(input: Input): Promise<any>;
  [Symbol.asyncIterator](): AsyncIterator<StreamEvent>;
}

/** `code` is the server's, or `not_a_stream`, `no_ending`, `no_location`. */
export class StreamError extends Error {
  constructor(code: string, status?: number, message?: string);
  code: string;
  status: number;
}

/** Follow a stream that is there: the one at `url`, or the one that the storage has under `key`. */
export function follow(options: FollowOptions): Stream;
/**
 * Start a generation and follow it. A new one each time, unless the storage has a start with this body that was never
 * answered: that one is asked for again, with the same Idempotency-Key, so there is one generation.
 */
export function start(options: StartOptions): Stream;
/** Resolves with `{state, last_event_id, stopped_after, already}`. */
export function cancel(options: CancelOptions): Promise<any>;
/** Resolves with `{id}`. Each call tells it once more, also one that is repeated after a lost answer. */
export function send(options: SendOptions): Promise<any>;
/** The answer after this event; the same object if the event says nothing new. */
export function fold(answer: Answer, event: StreamEvent | Notice): Answer;
export function empty(): Answer;
/** What JSON that was cut says so far; null: nothing yet. */
export function partial(json: string): any;
