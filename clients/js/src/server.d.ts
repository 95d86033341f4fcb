export interface ForwardOptions {
  /** The origin of the Lastevent server. */
  server: string;
  /** Your API key. It never reaches the client. */
  key: string;
  /**
   * The path and query at the server, such as `/v1/streams/ID/events`. Default: the request's own. One that is no call of
   * a stream's is answered 404 here.
   */
  path?: string;
  /** The address of the stream `id` at your endpoint, for the client, which adds `/events`. Default: `/v1/streams/ID`. */
  location?: (id: string) => string;
}

/**
 * Pass a request on to the server with your key, and its answer back as it comes. Check first that it may be asked.
 * Rejects with a TypeError if the request's body was read before.
 */
export function forward(request: Request, options: ForwardOptions): Promise<Response>;
