import type { Answer, Connection, FollowOptions, Input, Stream } from "./index.js";

export interface LiveAnswer extends Answer {
  connection: Connection;
  cancel(reason?: string): Promise<any>;
  send(input: Input): Promise<any>;
  stop(): void;
}

/**
 * The answer, rendered at most once a frame. Options: as those of `follow`; another `url` or `key` opens anew. Or a
 * stream that is open already, as `start` returns it. null: the empty answer.
 */
export function useAnswer(options: FollowOptions | Stream | null): LiveAnswer;
