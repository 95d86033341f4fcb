/**
 * Takes one event of a stream and no other until the server has cut its connection; then all: `node holding.mjs SERVER SID`.
 */

import { follow } from "lastevent";

const stream = `${process.argv[2]}/v1/streams/${process.argv[3]}`;
const ids = [];
let held;

async function cut() {
  for (;;) {
    const { views } = await (await fetch(`${stream}/views`)).json();
    const [first] = views;
    if (first?.closed_at) return first;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const followed = follow({ url: `${stream}/events?compact=0` });
for await (const { id } of followed) {
  ids.push(id);
  held ??= { ...(await cut()), cursor: followed.answer.cursor };
}
const { how, last_id: sent, cursor } = held;
console.log(JSON.stringify({ how, sent, cursor, ids, text: followed.answer.text.length, state: followed.answer.state }));
