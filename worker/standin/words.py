"""What the stand-in says: a pure function of the last user message."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import chain, count

from worker.standin.directives import without_directives

_OPENING = "This is a stand-in and no model: nobody has understood your message."
JSON_TEXT = '{"city":"Oslo","celsius":3}'
_ASIDE = "A stand-in does not think, so this is only what thinking would look like on the way to you."
_SENTENCES = (
    "A river does not ask the stone to move.",
    "Every word here was chosen by arithmetic.",
    "The log keeps what the wire forgets.",
    "Somebody in a tunnel will read this a little later.",
    "Counting is the oldest way of not losing things.",
    "Trains leave on time when nobody is watching.",
    "If the line drops now, you will miss nothing.",
    "Salt, bread and a good index carry far.",
    "The lighthouse blinks whether or not a ship is near.",
    "Two clocks agree only by accident.",
    "What was said once need not be said again.",
    "A patient reader is still a reader.",
    "Snow falls on the fast and on the slow alike.",
    "The bridge was drawn before the road was.",
    "Numbers in order make a quiet kind of promise.",
    "An empty page is also an answer, but not this one.",
    "The kettle boils at its own pace.",
    "Names are short so that they may be shouted.",
    "Somewhere a machine restarts and picks up the thread.",
    "Old maps show the sea where the sea still is.",
    "The last letter arrives after the first, always.",
    "Windmills turn and nobody hurries them.",
    "This sentence is the same every time you ask.",
)  # a prime number of them, so that every step through them visits all


def words(message: str, told: str = "") -> Iterator[str]:
    """The answer to `message`, word by word, for ever. Joined, they are the text. `told`: what tools have said, which
    comes first.
    """
    return _strung([*told.split(), *_OPENING.split(), *_quote(message)], message)


def thoughts(message: str) -> Iterator[str]:
    return _strung(_ASIDE.split(), message)


def _strung(opening: list[str], message: str) -> Iterator[str]:
    said = chain(opening, chain.from_iterable(sentence.split() for sentence in _sentences(message)))
    yield next(said)
    for word in said:
        yield f" {word}"


def _quote(message: str) -> list[str]:
    said = without_directives(message[:4000])[:400].split()[:8]
    return f"You wrote: “{' '.join(said)[:80]}”.".split() if said else []


def _sentences(message: str) -> Iterator[str]:
    seed = int.from_bytes(sha256(message.encode()).digest()[:8], "big")
    step = 1 + seed % (len(_SENTENCES) - 1)
    return (_SENTENCES[(seed + i * step) % len(_SENTENCES)] for i in count())
