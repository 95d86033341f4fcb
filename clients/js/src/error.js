/** Why a stream cannot be followed, for good. */
export class StreamError extends Error {
  /**
   * @param {string} code the server's (docs/API.md), or `not_a_stream`, `no_ending`, `no_location`
   * @param {number} [status] of HTTP; 0: none
   * @param {string} [message] for people
   */
  constructor(code, status = 0, message = code) {
    super(message);
    this.name = "StreamError";
    this.code = code;
    this.status = status;
  }
}
