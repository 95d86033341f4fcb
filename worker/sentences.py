"""Sentences for speech: a text that comes in pieces, as sentences that can be spoken while it goes on. Pure.

What is said depends on the text alone, never on where it was cut into pieces: each decision is taken at one place of
the text, on what is before that place. The way of a text:

    lines    a line's beginning says what it is: a heading, an item, a quote, a table, a fence of code, a rule. What
             cannot be spoken (code, tables) is left out, and `skipped` says so. Until it is known, the line waits
    words    marks of emphasis and code are taken out, blanks become spaces
    tail     what is not spoken yet. Whether a sentence ends at a terminator is asked LOOK_AHEAD characters after it:
             then all is certain but the last sentence. A blank line, a heading and an item end one at once

Where sentences end in which language, sentencex knows (Wikimedia's). It says "Go." and "Then" of half a quotation and
one sentence of the whole: a listener does not mind.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from enum import Enum
from typing import Any

import sentencex  # type: ignore[import-untyped]  # the package has no types

logger = logging.getLogger(__name__)

LOOK_AHEAD = 4
"""Characters after a terminator: enough for a quote's end, a space and the beginning of what tells "3 p.m. on" from
"3 p.m. On"."""

MAX_CHARACTERS = 250
"""Of a sentence. Nobody waits longer than some 15 s of speech for the first word of it."""

_HELD_LINE = 4096
"""A line that may be a table's is held until it ends, but no longer than this."""
_HELD_RUN = 64
"""Marks in a row, likewise."""

_TERMINATORS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e"
    "\u1c7f\u2024\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877"
    "\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
"""Unicode's Sentence_Terminal beyond ASCII, without what only historic scripts have."""

_OF_LANGUAGES = {"el": ";", "hy": ":\u055c", "my": "\u104f"}

_BEGINNING = re.compile(
    r"""(?P<blank>\n)
      | (?P<rule>(?P<mark>[-*_=])(?P=mark){1,63}[ \t]{0,64}\n)
      | (?P<fence>`{3,64}|~{3,64})(?P<info>[^\n]{0,200})\n
      | (?P<heading>\#{1,6})(?:[ \t]|(?=\n))
      | (?P<item>[-*+])(?:[ \t]|(?=\n))
      | (?P<number>(?P<count>\d{1,9})[.)])[ \t]
      | (?P<quote>>)
      | (?P<row>\|[^\n]*)\n
    """,
    re.VERBOSE,
)
_MAY_BEGIN = re.compile(
    r"""([-*_=])\1{0,63}[ \t]{0,64} | \+ | (?:`{1,64}|~{1,64}) | (?:`{3,64}|~{3,64})[^\n]{0,200}
      | \#{1,6} | \d{1,9}[.)]? | \|[^\n]*""",
    re.VERBOSE,
)
# What has matched the one, of a longer line, has matched the other with each of its beginnings: so it waits.
_FENCE_END = re.compile(r"[ \t>]*(`{3,64}|~{3,64})[ \t]*")
_MAY_END_FENCE = re.compile(r"[ \t>]{0,64}[`~]{0,64}[ \t]{0,64}")

_MARKS = re.compile(r"\*{1,64}|_{1,64}|`{1,64}|~{1,64}")
_BLANK_CHARACTER = re.compile(r"[^\S \n]")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s\"[^\"]*\")?\)")
_GOES_ON = re.compile(r"[\W\d_]*(?:[A-Za-z]\.\s*)?")
"""A sentence that is no more than this is none: "1.", "M." of "M. Dupont" """
_OPENS = re.compile(r"""(?:(?<=\s)["'“„‚‘«‹(\[{¿¡]|[「『《〈（【])+\s*\Z""")
"""What sentencex takes for the end of a sentence, and is the next one's, where half of a quotation is all there is."""
_WORD = re.compile(r"\w")
_PAUSE = re.compile(r"[,;:\u2013\u2014\u060c\u061b](?=\s)|[\u3001\uff0c\uff1b\uff1a]")

Sentence = dict[str, Any]
"""{"text", "index"}, or {"skipped"}."""


class _At(Enum):
    """Where in the text it stands."""

    BEGINNING = "beginning of a line"
    TEXT = "text"
    CODE = "code, at the beginning of a line"
    CODE_LINE = "code, amid a line"
    TABLE_LINE = "amid a row"


class Sentences:
    """Of one attempt. `language`: a tag of BCP 47."""

    def __init__(self, language: str) -> None:
        # By its first part: a region changes no sentence, and sentencex does not know every one.
        self._language = language.partition("-")[0].lower()
        more = re.escape(_OF_LANGUAGES.get(self._language, ""))
        # An ASCII one amid a word ends nothing: 3.14, example.org, ?a=b.
        self._terminator = re.compile(rf"[.!?{more}{_TERMINATORS}]*(?:[.!?](?![.!?A-Za-z0-9])|[{more}{_TERMINATORS}])")
        self._index = 0
        self._begin()

    def _begin(self) -> None:
        self._at = _At.BEGINNING
        self._held = ""  # not known yet what it is
        self._fence = ""
        self._is_own_line = False  # a heading: it ends with its line
        self._is_item = False
        self._is_table = False
        self._lead = ""  # an item's number, which its first sentence begins with
        self._before = "\n"  # the character before what is held, for marks
        self._tail = ""
        self._sought = 0  # of the tail: before this there is no terminator to ask about

    def take(self, text: str) -> list[Sentence]:
        """What has become certain with this piece of the text."""
        said: list[Sentence] = []
        text = text.replace("\r", "")
        for at in range(0, len(text), _HELD_LINE):
            self._held += text[at : at + _HELD_LINE]
            said += self._taken()
        return said

    def end(self) -> list[Sentence]:
        """The rest: nothing follows that belongs to it. What is said afterwards begins a line."""
        said = list(self._ended())
        self._begin()
        return said

    # -- lines -------------------------------------------------------------------------------------------

    def _taken(self) -> Iterator[Sentence]:
        goes_on = True
        while goes_on and self._held:
            match self._at:
                case _At.BEGINNING:
                    goes_on = yield from self._take_beginning()
                case _At.TEXT:
                    goes_on = yield from self._take_text()
                case _At.CODE:
                    goes_on = self._take_code()
                case _At.CODE_LINE | _At.TABLE_LINE:
                    goes_on = self._leave_line()

    def _ended(self) -> Iterator[Sentence]:
        if self._at is _At.BEGINNING and self._held:
            # As if the line ended here: then it is known what it is.
            self._held += "\n"
            yield from self._taken()
        elif self._at is _At.TEXT:
            yield from self._say(self._held, is_end=True)
        yield from self._flush()

    def _take_beginning(self) -> Generator[Sentence, None, bool]:
        """Returns whether it went on."""
        self._held = self._held.lstrip(" \t")
        begun = _BEGINNING.match(self._held)
        if begun is None or (begun["row"] is not None and len(begun["row"]) > _HELD_LINE):
            if _MAY_BEGIN.fullmatch(self._held) and len(self._held) <= _HELD_LINE:
                return False
            if self._held.startswith("|") and len(self._held.partition("\n")[0]) > _HELD_LINE:
                yield from self._skip_row()
                self._at = _At.TABLE_LINE
                return True
            if self._held:
                self._begin_text()
            return bool(self._held)
        if begun["row"] is not None:
            if not _is_row(begun["row"]):
                self._begin_text()
                return True
            yield from self._skip_row()
        elif begun["fence"]:
            if begun["fence"][0] == "`" and "`" in begun["info"]:  # code within a line
                self._begin_text()
                return True
            yield from self._flush()
            self._fence, self._at, self._is_item = begun["fence"], _At.CODE, False
            yield {"skipped": "code"}
        elif begun["number"]:
            # A line of a paragraph may begin with a year and a full stop.
            if begun["count"] != "1" and not self._is_item and self._tail:
                self._begin_text()
                return True
            yield from self._flush()
            self._lead, self._is_item = f"{begun['number']} ", True
        elif not begun["quote"]:
            yield from self._flush()
            self._is_own_line = begun["heading"] is not None
            self._is_item = begun["item"] is not None
        if begun["row"] is None:
            self._is_table = False
        self._held = self._held[begun.end() :]
        return True

    def _begin_text(self) -> None:
        self._at, self._before, self._is_table = _At.TEXT, "\n", False
        if self._tail and not self._tail[-1].isspace():
            self._tail += " "  # the line's end

    def _skip_row(self) -> Iterator[Sentence]:
        yield from self._flush()
        if not self._is_table:
            yield {"skipped": "table"}
        self._is_table, self._is_item = True, False

    def _take_code(self) -> bool:
        line, newline, after = self._held.partition("\n")
        if newline:
            end = _FENCE_END.fullmatch(line)
            if end and end[1].startswith(self._fence):
                self._at = _At.BEGINNING
            self._held = after
            return True
        if _MAY_END_FENCE.fullmatch(line):
            return False
        self._at = _At.CODE_LINE
        return True

    def _leave_line(self) -> bool:
        _, newline, self._held = self._held.partition("\n")
        if newline:
            self._at = _At.CODE if self._at is _At.CODE_LINE else _At.BEGINNING
        return bool(newline)

    def _take_text(self) -> Generator[Sentence, None, bool]:
        """Returns whether it went on."""
        line, newline, after = self._held.partition("\n")
        yield from self._say(line, is_end=bool(newline))
        if not newline:
            return False
        if self._is_own_line:
            yield from self._flush()
        self._held, self._at = after, _At.BEGINNING
        return True

    # -- words -------------------------------------------------------------------------------------------

    def _say(self, text: str, *, is_end: bool) -> Iterator[Sentence]:
        """More of a line. `is_end`: it is over with this. Marks at its end are held until it is known what follows."""
        words: list[str] = []
        at = 0
        for marks in _MARKS.finditer(text):
            if marks.end() == len(text) and not is_end and len(marks[0]) < _HELD_RUN:
                text = text[: marks.start()]
                self._held = marks[0]
                break
            before = text[marks.start() - 1] if marks.start() else self._before
            after = marks[0][0] if len(marks[0]) == _HELD_RUN else (text[marks.end() :] or "\n")[0]
            words.append(text[at : marks.start()])
            if _stays(marks[0], before, after):
                words.append(marks[0])
            at = marks.end()
        else:
            self._held = ""
        if text:
            self._before = text[-1]
        words.append(text[at:])
        self._tail += _BLANK_CHARACTER.sub(" ", "".join(words))
        return self._certain()

    # -- the tail ----------------------------------------------------------------------------------------

    def _certain(self) -> Iterator[Sentence]:
        while True:
            found = self._terminator.search(self._tail, self._sought, MAX_CHARACTERS + 1)
            asked_at = found.end() + LOOK_AHEAD if found else 0
            if found and asked_at <= min(len(self._tail), MAX_CHARACTERS + 1):
                if _GOES_ON.fullmatch(self._tail, 0, found.end()):  # a model that says "?!" for ever takes no time
                    self._sought = found.end()
                    continue
                *ended, _ = self._segments(self._tail[:asked_at])
                for sentence in ended:
                    yield from self._sentence(sentence)
                spoken = sum(map(len, ended))
                self._tail, self._sought = self._tail[spoken:], max(0, found.end() - spoken)
            elif len(self._tail) > MAX_CHARACTERS:
                spoken = _pause_in(self._tail[: MAX_CHARACTERS + 1])
                yield from self._sentence(self._tail[:spoken])
                self._tail, self._sought = self._tail[spoken:], max(0, self._sought - spoken)
            else:
                return

    def _flush(self) -> Iterator[Sentence]:
        yield from self._certain()
        for sentence in self._segments(self._tail):
            yield from self._sentence(sentence)
        if self._lead:  # a number with nothing to say behind it: "1969. " may be the whole answer
            yield {"text": self._lead.rstrip(), "index": self._index}
            self._index += 1
        self._tail, self._sought, self._lead, self._is_own_line = "", 0, "", False

    def _segments(self, text: str) -> list[str]:
        """At least one; joined, they are the text."""
        segments = [""]
        for segment in _segmented(self._language, text):
            # "Yes!And" and the numbers of "1. Go. 2. Stop." end nothing.
            amid = segments[-1][-1:] in (".", "!", "?") and segment[:1].isascii() and segment[:1].isalnum()
            if amid or _GOES_ON.fullmatch(segments[-1]) or not _WORD.search(segment):
                segments[-1] += segment
            elif opens := _OPENS.search(segments[-1]):
                segments[-1:] = [segments[-1][: opens.start()], opens[0] + segment]
            else:
                segments.append(segment)
        return segments

    def _sentence(self, text: str) -> Iterator[Sentence]:
        said = " ".join(_LINK.sub(r"\1", text).split())
        if not _WORD.search(said):
            return
        yield {"text": self._lead + said, "index": self._index}
        self._lead = ""
        self._index += 1


def _is_row(line: str) -> bool:
    line = line.rstrip()
    return len(line) > 1 and line.endswith("|")


def _stays(marks: str, before: str, after: str) -> bool:
    """Whether these marks are meant as characters: 2 * 3, 2*3, snake_case, ~5."""
    if marks[0] == "`":
        return False
    if marks[0] == "~":
        return len(marks) < 2
    if before.isspace() and after.isspace():
        return True
    is_amid_words = (before.isalnum(), after.isalnum()) == (True, True)
    if marks[0] == "_":
        return is_amid_words
    return is_amid_words and before.isascii() and after.isascii()


def _pause_in(text: str) -> int:
    """Where a text that is too long is cut: behind its last comma, or else at its last space, or else anywhere."""
    pauses = [pause.end() for pause in _PAUSE.finditer(text)]
    if pauses:
        return pauses[-1]
    space = text.rfind(" ")
    return space + 1 if space > 0 else len(text) - 1


def _segmented(language: str, text: str) -> list[str]:
    try:
        segments: list[str] = sentencex.segment(language, text)
    except BaseException as error:
        # A panic of its Rust is no Exception, and would end the task that has the stream.
        if type(error).__name__ != "PanicException":
            raise
        logger.warning("sentencex could not read %d characters of a text in %s", len(text), language)
        return [text]
    return segments
