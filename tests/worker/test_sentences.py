"""Sentences of a text that comes in pieces: the same however it was cut, soon after their end, and fit to be spoken."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.long import LONG
from tests.worker.prose import MARKDOWN, PROSE, TEXTS, deltas, lateness, told
from worker.sentences import MAX_CHARACTERS, Sentences

CUTS = 20_000 if LONG else 1000
LATE = 8
"""Characters between a sentence's end and the end of the delta that told it, at the median."""

PIECES = st.sampled_from(
    [
        *"ab C9.!?,;:\"'()[]“”«»\n\t-*_`~#>|+=\r\u00a0\u2028\u3000日。」।؟é🙂\u0301",
        *(
            "```",
            "\n```\n",
            "~~~",
            "\n\n",
            "\n- ",
            "\n1. ",
            "\n2024. ",
            "\n# ",
            "\n> ",
            "\n| a | b |\n",
            "|---|",
            "---\n",
        ),
        *("**", "Dr. ", "e.g. ", "3.14", "[a](b.c)", "x" * 60, "word " * 60, "*" * 63, "|" + "y" * 4095),
    ]
)


def texts(said: list[dict[str, object]]) -> list[object]:
    return [sentence.get("text", sentence) for sentence in said]


# -- however it is cut ---------------------------------------------------------------------------------------------


def test_over_random_cuts_a_text_has_the_same_sentences() -> None:
    generator = random.Random(29)
    whole = {text: told(text, language=language) for language, text in TEXTS}
    for _ in range(CUTS):
        language, text = generator.choice(TEXTS)
        count = generator.choice((1, 3, 20, len(text)))
        cuts = sorted(generator.randrange(len(text) + 1) for _ in range(count))
        assert told(text, cuts, language) == whole[text], (language, cuts)


@pytest.mark.parametrize(("language", "text"), TEXTS)
def test_each_character_by_itself_gives_the_same_sentences(language: str, text: str) -> None:
    assert told(text, range(1, len(text)), language) == told(text, language=language)


@settings(max_examples=5000 if LONG else 150, deadline=None)
@given(
    st.lists(PIECES, max_size=60), st.sampled_from([*PROSE, "it", "hy", "th", "xx"]), st.randoms(use_true_random=False)
)
def test_so_it_is_of_texts_of_nothing_but_marks_and_beginnings(
    pieces: list[str], language: str, generator: random.Random
) -> None:
    text = "".join(pieces)
    cuts = sorted(generator.randrange(len(text) + 1) for _ in range(generator.choice((1, 5, 30))))
    whole = told(text, language=language)
    assert told(text, cuts, language) == whole
    assert [sentence["index"] for sentence in whole if "index" in sentence] == list(
        range(sum("index" in sentence for sentence in whole))
    )
    assert all(len(sentence["text"]) <= MAX_CHARACTERS + len("123456789. ") for sentence in whole if "text" in sentence)


@pytest.mark.parametrize(("language", "text"), PROSE.items())
def test_the_sentences_of_prose_are_the_text(language: str, text: str) -> None:
    assert "".join("".join(map(str, texts(told(text, language=language)))).split()) == "".join(text.split())


# -- when ----------------------------------------------------------------------------------------------------------


def test_a_sentence_is_late_by_a_few_characters() -> None:
    generator = random.Random(1)
    for language, text in PROSE.items():
        late = [at for _ in range(20) for at in lateness(language, text, generator)]
        assert median(late) <= LATE, language


def test_the_end_of_a_paragraph_a_heading_and_an_item_is_that_of_a_sentence_at_once() -> None:
    sentences = Sentences("en")
    assert texts(sentences.take("# Rice\n")) == ["Rice"]
    assert sentences.take("Without an end\n") == []
    assert texts(sentences.take("\n")) == ["Without an end"]
    assert sentences.take("- one\n") == []
    assert texts(sentences.take("- ")) == ["one"]
    assert texts(sentences.end()) == []


def test_what_is_not_certain_comes_at_the_end_and_what_is_said_then_begins_anew() -> None:
    sentences = Sentences("en")
    assert sentences.take("I look it up") == []
    assert sentences.end() == [{"text": "I look it up", "index": 0}]
    assert sentences.end() == []
    assert sentences.take("# Found\n") == [{"text": "Found", "index": 1}]


# -- what ----------------------------------------------------------------------------------------------------------


def test_marks_are_taken_out_and_code_and_tables_left_out() -> None:
    assert texts(told(MARKDOWN)) == [
        "How to cook rice",
        "Take two cups of water (cold, e.g. from the tap).",
        "Boil it!",
        "Then:",
        "1. Wash the rice.",
        "Do it twice.",
        "2. Add salt",
        "stir, see the guide",
        "wait",
        {"skipped": "code"},
        {"skipped": "table"},
        "Never lift the lid.",
        "It lets the steam out",
        "The end is near.",
        "See snake_case, and 2 * 3 = 6.",
        "Enjoy",
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("   \n\n ", []),
        ("Hello", ["Hello"]),
        ("42", ["42"]),
        ("...", []),
        ("M. Dupont is here. Yes", ["M. Dupont is here.", "Yes"]),
        ("It was in\n1984. Nobody knew.", ["It was in 1984.", "Nobody knew."]),
        ("A line\nthat goes on.", ["A line that goes on."]),
        ("He asked. “Why not?” she said.", ["He asked.", "“Why not?” she said."]),
        ("Go to a.example/?A=1 now. Then stop.", ["Go to a.example/?A=1 now.", "Then stop."]),
        ("Before\n```js\na. B\n```\nafter", ["Before", {"skipped": "code"}, "after"]),
        ("- x\n  ```\n  a\n  ```\n- y", ["x", {"skipped": "code"}, "y"]),
        ("````\n```\nstill. Code\n````\nText", [{"skipped": "code"}, "Text"]),
        ("```cut off", [{"skipped": "code"}]),
        ("```\nno end. At all", [{"skipped": "code"}]),
        ("```one``` line. Of code", ["one line.", "Of code"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |\nAfter. It", [{"skipped": "table"}, "After.", "It"]),
        ("| x | is no row", ["| x | is no row"]),
        ("Line\r\n\r\nNext\r\n", ["Line", "Next"]),
        ("日本。東京は", ["日本。", "東京は"]),
    ],
)
def test_a_text_and_its_sentences(text: str, sentences: list[object]) -> None:
    assert texts(told(text)) == sentences


def test_a_long_sentence_is_told_up_to_its_last_comma() -> None:
    clause, rest = "this goes on, ", "and on without any pause " * 20
    said = texts(told(clause * 10 + rest))
    assert said[0] == (clause * 10).strip()
    assert " ".join(map(str, said)).split() == (clause * 10 + rest).split(), "nothing is lost at the cuts"
    assert all(len(str(sentence)) <= MAX_CHARACTERS for sentence in said)
    assert "".join(map(str, texts(told("x" * 1000)))) == "x" * 1000


def test_a_language_is_known_by_its_first_part() -> None:
    assert texts(told("Τι κάνεις; Καλά είμαι.", language="el-GR")) == ["Τι κάνεις;", "Καλά είμαι."]
    assert texts(told("Das ist z. B. so. Gut so.", language="DE-at")) == ["Das ist z. B. so.", "Gut so."]
    assert texts(told("One. Two.", language="tlh")) == ["One.", "Two."]


def test_a_blank_that_the_library_panics_at_is_a_space() -> None:
    """sentencex 1.0.32: a capital, a blank of several bytes and a full stop are a panic, which is no Exception."""
    assert texts(told("Y\u00a0. Then X\u3000. Then")) == ["Y .", "Then X .", "Then"]


def test_pieces_of_an_answer_are_all_of_it() -> None:
    generator = random.Random(2)
    assert "".join(deltas(MARKDOWN, generator)) == MARKDOWN


@pytest.mark.parametrize("text", ["1969. ", "1969. \n", "42) \U0001f642", "7. ```\ncode\n```\n"])
def test_a_number_with_nothing_behind_it_is_said(text: str) -> None:
    assert texts(told(text))[0] == text.split(" ")[0]
