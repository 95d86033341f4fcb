// A problem on the page: the server's title and detail, with a button to try again.

import { askAgain } from "./api.js";
import { h, notice } from "./dom.js";

export function problemNotice(problem, retry) {
  const tryAgain = () => {
    askAgain();
    retry();
  };
  const label = problem.status === 401 ? "Enter a key" : "Try again";
  const isFinal = problem.status === 404 || problem.status === 410;
  const action = retry && !isFinal && h("button", { type: "button", onclick: tryAgain }, label);
  const reported = problem.status >= 500 && problem.requestId ? ` Request id: ${problem.requestId}.` : "";
  return notice("error", problem.message, `${problem.detail}${reported}`, action);
}
