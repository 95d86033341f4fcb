export interface ForwardOptions {
  /** The origin of the Lastevent server. */
  server: string;
  /** Your API key. It never reaches the client. */
  key: string;
  /** The path and query at the server, such as `/v1/streams/ID/events`. Default: the request's own. */
  path?: string;
  /** The address of the stream `id` at your endpoint, for the client. */
  location?: (id: string) => string;
}

/** Pass a request on to the server with your key, and its answer back as it comes. Check first that it may be asked. */
export function forward(request: Request, options: ForwardOptions): Promise<Response>;
