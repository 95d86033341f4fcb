import type { Answer, Connection, FollowOptions, Input, Stream } from "./index.js";

export interface LiveAnswer extends Answer {
  connection: Connection;
  cancel(reason?: string): Promise<any>;
  send(input: Input): Promise<any>;
  stop(): void;
}

/**
 * The answer, rendered at most once a frame; the same object while nothing has changed. Of options, as `follow` takes
 * them, only another `url`, `key` or `user` opens anew. Components that name the same ones share a stream, which is
 * stopped when the last of them has gone. A stream that is open already, as `start` returns it, is stopped by nobody.
 * null, and where a server renders: the empty answer.
 */
export function useAnswer(options: FollowOptions | Stream | null): LiveAnswer;
