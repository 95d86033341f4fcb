// React Native's XMLHttpRequest over Node's http, as its 0.8x has it: `responseURL` is there only after it has told of the
// headers; after an error the text is its message, and the status stays; one that never came has status 0; cookies are
// sent unless it is told otherwise; an abort is told of at once.
import http from "node:http";

export class XMLHttpRequest {
  static LOADING = 3;
  static DONE = 4;
  /** The most that any of them has held. */
  static longest = 0;
  readyState = 0;
  status = 0;
  withCredentials = true;
  #text = "";
  #headers = {};

  open(method, url) {
    this.method = method;
    this.url = url;
    this.go(1);
  }

  setRequestHeader(name, value) {
    this.#headers[name.toLowerCase()] = String(value);
  }

  getResponseHeader(name) {
    return this.answer?.headers[name.toLowerCase()] ?? null;
  }

  get responseText() {
    return this.readyState < XMLHttpRequest.LOADING ? "" : this.#text;
  }

  send(body) {
    this.request = http.request(this.url, { method: this.method, headers: this.#headers, agent: false }, (answer) => {
      this.answer = answer;
      this.status = answer.statusCode;
      this.go(2);
      this.responseURL = this.url;
      answer.setEncoding("utf8");
      answer.on("data", (text) => this.hear(text));
      answer.on("end", () => this.end());
      answer.on("error", (error) => this.#fail(error));
    });
    this.request.on("error", (error) => this.#fail(error));
    this.request.end(body);
  }

  /** More of the text. */
  hear(text) {
    if (this.isOver) return;
    this.#text += text;
    XMLHttpRequest.longest = Math.max(XMLHttpRequest.longest, this.#text.length);
    this.go(XMLHttpRequest.LOADING);
    this.onprogress?.();
  }

  end() {
    if (this.isOver) return;
    this.isOver = true;
    this.go(XMLHttpRequest.DONE);
    this.onload?.();
  }

  abort() {
    const isUnderWay = this.readyState > 0 && !this.isOver;
    this.isOver = true;
    this.request?.destroy();
    this.status = 0;
    this.answer = undefined;
    this.#text = "";
    if (isUnderWay) {
      this.go(XMLHttpRequest.DONE);
      this.onabort?.();
    }
    this.readyState = 0;
  }

  go(state) {
    this.readyState = state;
    this.onreadystatechange?.();
  }

  #fail(error) {
    if (this.isOver) return;
    this.isOver = true;
    this.#text = error.message;
    this.go(XMLHttpRequest.DONE);
    this.onerror?.();
  }
}
