"""Numbers in German and English words: a task to translate that needs no data.

Small, but not trivial: German puts the ones before the tens and writes a number as one word
("zweiundvierzig", "forty-two"). The words are those of the package num2words.
"""

from __future__ import annotations

import functools

from sagelr.errors import UsageError
from sagelr.tasks.bitext.corpus import Corpus, Languages, Pairs

NUMBERS = 5_000  # from 0
LANGUAGES: Languages = ("de", "en")


def load(languages: Languages) -> Corpus:
    """Every number below 5,000 in words.

    Args:
        languages: ("de", "en"), or the other way round.

    Raises:
        UsageError: other languages, or num2words is not installed.
    """
    if sorted(languages) != sorted(LANGUAGES):
        raise UsageError(
            f"The task number-words has German and English alone, not {' and '.join(languages)}. "
            "Set task.source_language to de and task.target_language to en, or the other way round."
        )
    words = dict(zip(LANGUAGES, _words(), strict=True))
    names = (f"numbers in {languages[0]}", f"numbers in {languages[1]}")
    return Corpus(
        "Numbers in words",
        f"num2words, 0 to {NUMBERS - 1:,}",
        f"made here: num2words, 0 to {NUMBERS - 1:,}",
        languages,
        {"train": Pairs(words[languages[0]], words[languages[1]], names, "number")},
    )


@functools.cache
def _words() -> tuple[list[str], list[str]]:
    """German and English, by number; made once, for it takes a second or two."""
    try:
        from num2words import num2words
    except ImportError:
        raise UsageError(
            "The task number-words needs the package num2words: pip install num2words"
        ) from None
    german = [num2words(number, lang="de") for number in range(NUMBERS)]
    english = [num2words(number, lang="en") for number in range(NUMBERS)]
    return german, english
