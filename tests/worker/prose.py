"""Answers as models give them, in several languages, for what is told in sentences; and how late those come.

`python -m tests.worker.prose` prints the lateness: characters of the answer between a sentence's end and the end of
the delta with which it was told.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import median

from worker.sentences import Sentence, Sentences

PROSE = {
    "en": "Dr. Smith met Mr. Jones at 5 p.m. on Monday. They paid $3.50 for two coffees! Was it worth it? “I think "
    "so,” he said. Later, e.g. at home, he wrote to the U.S. office. Nobody answered... He waited. The version was "
    "2.0.1, and example.org/?q=a had it. In the end he went to bed, for there was nothing else to do. Was that all?",
    "de": "Herr Dr. Maier kam am Montag. Er fragte z. B. nach dem Preis. Das kostet 3,50 Euro! Ist das zu viel? Nein, "
    "sagte er. Die Straße war leer, und der Regen hörte nicht auf. Am Abend fuhr er nach Hause. Dort wartete niemand.",
    "fr": "M. Dupont est arrivé lundi. Il a demandé le prix. Est-ce trop cher ? Non, répondit-elle. La rue était vide. "
    "« Venez demain », dit-il. Elle n'a pas répondu. Le lendemain, il faisait beau.",
    "es": "El Sr. Pérez llegó el lunes. ¿Cuánto cuesta? ¡Es muy caro! No dijo nada más. La calle estaba vacía. Por "
    "la noche volvió a casa. Allí nadie lo esperaba.",
    "hu": "Kovács úr hétfőn érkezett. Megkérdezte az árat. Mennyibe kerül? Túl drága! Az utca üres volt. Este "
    "hazament. Otthon senki sem várta.",
    "el": "Ο κύριος ήρθε τη Δευτέρα. Πόσο κάνει; Είναι πολύ ακριβό! Ο δρόμος ήταν άδειος. Το βράδυ γύρισε σπίτι.",
    "hi": "वह सोमवार को आया। उसने दाम पूछा। यह कितने का है? बहुत महँगा है! सड़क खाली थी। शाम को वह घर गया।",
    "ja": "彼は月曜日に来ました。値段を聞きました。いくらですか?とても高いです!通りは空いていました。",
    "zh": "他星期一来了。他问了价格。多少钱?太贵了!街上没有人。晚上他回家了。家里没有人等他。",
    "ar": "وصل يوم الاثنين. سأل عن السعر. كم يكلف هذا؟ إنه غال جدا! كان الشارع فارغا. عاد إلى البيت مساء.",
}

MARKDOWN = """# How to *cook* rice

Take **two cups** of water (cold, e.g. from the tap). Boil it! Then:

1. Wash the rice. Do it twice.
2. Add `salt`
- stir, see [the guide](https://example.org/a?B=1)
* wait

```python
print("Hello. World")
```

| what | how much |
|---|---|
| rice | 1 cup |

> Never lift the lid.
> It lets the steam out

---
The end **is near.** See snake_case, and 2 * 3 = 6. Enjoy"""

TEXTS: Sequence[tuple[str, str]] = [*PROSE.items(), ("en", MARKDOWN)]


def told(text: str, cuts: Sequence[int] = (), language: str = "en") -> list[Sentence]:
    """The sentences of a text that comes in pieces."""
    sentences, said = Sentences(language), []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        said += sentences.take(text[start:end])
    return said + sentences.end()


def deltas(text: str, generator: random.Random) -> Iterator[str]:
    """Pieces as models say them, 1 to 8 characters long."""
    at = 0
    while at < len(text):
        size = generator.randint(1, 8)
        yield text[at : at + size]
        at += size


def lateness(language: str, text: str, generator: random.Random) -> list[int]:
    """Of each sentence but the last, which the ending tells, in characters. `text` has one space between two words."""
    sentences, late, said, spoken = Sentences(language), [], 0, 0
    for piece in deltas(text, generator):
        said += len(piece)
        for sentence in sentences.take(piece):
            spoken = text.index(sentence["text"], spoken) + len(sentence["text"])
            late.append(said - spoken)
    return late


def main() -> None:
    generator = random.Random(1)
    every: list[int] = []
    print("language  sentences  median  greatest   (characters late, of 100 readings each)")
    for language, text in PROSE.items():
        late = [at for _ in range(100) for at in lateness(language, text, generator)]
        every += late
        print(f"{language:8} {len(late):10} {median(late):7.1f} {max(late):9}")
    print(f"{'all':8} {len(every):10} {median(every):7.1f} {max(every):9}")


if __name__ == "__main__":
    main()
