"""What every published event looks like: of one length, with a mark, so that viewers count and time it by offsets.

    {"text":"~ a few words of it","sent":1763747408123456789,"n":1000001}

The mark `~` is on the wire once an event and nowhere else, and is one byte: no read, and no chunk of HTTP, can split
it. `sent` is time.time_ns() when the publisher handed the event over, `n` its number in its stream (and FIRST_N).
"""

from __future__ import annotations

import time

MARK = b"~"
TEXT = "~ a few words of it"
FIRST_N = 1_000_000  # so that every number has seven digits

_SENT_AT = len(f'{TEXT}","sent":')
_N_AT = _SENT_AT + 19 + len(',"n":')

# Places in an event, counted from its mark.
SENT = slice(_SENT_AT, _SENT_AT + 19)
N = slice(_N_AT, _N_AT + 7)
SPAN = _N_AT + 7


def event(n: int) -> dict[str, object]:
    return {"text": TEXT, "sent": time.time_ns(), "n": FIRST_N + n}


def event_json(n: int) -> bytes:
    return b'{"text":"%b","sent":%d,"n":%d}' % (TEXT.encode(), time.time_ns(), FIRST_N + n)


# The same within the text, for dialects, which pass nothing else on: {"text":"~1763747408123456789 1000001 in words"}.
WORDS_SENT = slice(1, 20)
WORDS_N = slice(21, 28)
WORDS_SPAN = 28


def words_json(n: int) -> bytes:
    return b'{"text":"~%d %d in words"}' % (time.time_ns(), FIRST_N + n)
