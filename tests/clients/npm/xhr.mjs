// React Native's XMLHttpRequest, as far as react-native-sse uses it, over Node's http. As there, a connection that is cut
// after its head keeps its status at DONE, and one that never came has status 0.
import http from "node:http";

export class XMLHttpRequest {
  static LOADING = 3;
  static DONE = 4;
  readyState = 0;
  status = 0;
  responseText = "";
  #headers = {};

  open(method, url) {
    this.#go(1);
    this.method = method;
    this.url = url;
  }

  setRequestHeader(name, value) {
    const known = Object.keys(this.#headers).find((other) => other.toLowerCase() === name.toLowerCase());
    this.#headers[known ?? name] = value;
  }

  send(body) {
    this.request = http.request(this.url, { method: this.method, headers: this.#headers, agent: false }, (answer) => {
      this.status = answer.statusCode;
      answer.setEncoding("utf8");
      answer.on("data", (text) => { this.responseText += text; this.#go(XMLHttpRequest.LOADING); });
      answer.on("end", () => this.#go(XMLHttpRequest.DONE));
      answer.on("error", (error) => this.#fail(error));
    });
    this.request.on("error", (error) => this.#fail(error));
    this.request.end(body);
  }

  abort() {
    this.readyState = 0;
    this.request?.destroy();
  }

  #go(state) {
    this.readyState = state;
    this.onreadystatechange?.();
  }

  #fail(error) {
    if (this.readyState === 0 || this.readyState === XMLHttpRequest.DONE) return;
    this.responseText = error.message;
    this.#go(XMLHttpRequest.DONE);
    this.onerror?.();
  }
}
