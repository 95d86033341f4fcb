import type { Environment } from "./index.js";

export interface SocketOptions {
  /** Of `/v1/socket`, as http(s) or ws(s); in a browser a path will do. */
  url: string;
  /** For what is no call of a stream there, and where no socket comes through. Default: the global one. */
  fetch?: (url: string, init?: any) => Promise<any>;
  /** Default: the global one. Where there is none, or with null, all goes by `fetch`. */
  WebSocket?: any;
  env?: Partial<Environment>;
}

export interface Socket {
  /** For the option `fetch` of `start`, `follow`, `cancel` and `send`. */
  fetch(url: string, init?: any): Promise<any>;
  /** For good: streams that are followed then come back by `fetch`. */
  close(): void;
}

/** One WebSocket for many streams. It is opened for the first of them, and closed 10 s after the last. */
export function connect(options: SocketOptions): Socket;
