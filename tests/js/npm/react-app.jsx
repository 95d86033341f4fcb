// Components that show streams, one or more times each, and note what they did.
import { StrictMode, useLayoutEffect } from "react";
import { useAnswer } from "lastevent/react";

/** Of each commit of an answer: `{name, url, text, live, at, frame}`. */
export const commits = [];
export const clock = { frame: 0 };

export function Answer({ name, source }) {
  const live = useAnswer(source);
  useLayoutEffect(() => {
    commits.push({ name, url: source?.url, live, text: live.text, at: performance.now(), frame: clock.frame });
  });
  return <output id={name}>{live.text}</output>;
}

/** Takes its time to render, as long lists do. */
function Slow({ ms }) {
  const until = performance.now() + ms;
  while (performance.now() < until);
  return null;
}

export function App({ answers, slow = 0 }) {
  return (
    <StrictMode>
      {answers.map((answer) => [<Answer key={answer.name} {...answer} />, <Slow key={`${answer.name} slow`} ms={slow} />])}
    </StrictMode>
  );
}
