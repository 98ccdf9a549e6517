"""Tell whether an answer mostly repeats itself.

Training against a model's own preferences can end in texts such as `1. /* 2. /* 3. /*`, which pass
many surface checks (it is a numbered list!). `repetition_share` measures the repeated part of a
text in three ways and takes the largest, so that each kind of loop is seen by one of them:

1. **Words**: the share of word 4-grams that occurred before in the same text. This is *seq-rep-4*,
   1 - unique 4-grams / 4-grams, of Welleck et al. 2019, "Neural Text Generation with Unlikelihood
   Training", arXiv 1908.04319, on words instead of tokens so that it depends on no tokeniser.
2. **Lines**: the share of characters in lines that repeat an earlier line. Finds lists that shuffle
   a few short items, which word 4-grams across line breaks overlook.
3. **Loops**: the share of characters that immediately repeat a unit of at most 40 characters, where
   the unit stands four times or more in a row (three times in a text without any word, whose
   counters do not count either). Finds loops without words or spaces ("!!!!!!").

Case and white space are ignored, and all counters ("7.", "(7)", "7:") are made equal first: a list
whose items differ in nothing but their numbers repeats itself. In a text shorter than twelve words,
4-grams and lines say nothing, and only loops count. Repeated digits inside one number are no loop.

Known limits: a long good beginning outweighs a short loop at the end, for the definition asks for
*mostly*; and data with very few distinct values (a matrix of zeros and ones) looks like repetition.
"""

import re

MINIMUM_WORDS = 12
"""Texts of fewer words are judged by their loops alone."""

DEGENERATE_SHARE = 0.5
"""Above this share a text consists more of repetition than of anything else.

The largest share among the 160 MT-Bench turns and GPT-4's 120 reference answers is 0.28.
"""

_COUNTER = re.compile(r"(?<![^\s*_])\(?\d{1,4}[.):](?![^\s*_])")
# Where scripts put no spaces between words, each character stands for a word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_NUMBER = re.compile(r"(?<![\d,.])(\d[\d,.]{0,2})[\d,.]{0,37}(?![\d,.])")
_LOOP = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)
_WORDLESS_LOOP = re.compile(r"(.{1,40}?)\1{2,}", re.DOTALL)


def _gram_share(words: list[str], size: int = 4) -> float:
    grams = list(zip(*(words[start:] for start in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams)


def _line_share(text: str) -> float:
    lines = ["".join(line.split()) for line in text.splitlines()]
    return 1 - sum(map(len, set(lines))) / sum(map(len, lines))


def _loop_share(text: str, loop: re.Pattern[str] = _LOOP) -> float:
    squeezed = "".join(_NUMBER.sub(r"\1", text).split())
    repeated = sum(len(found[0]) - len(found[1]) for found in loop.finditer(squeezed))
    return repeated / max(1, len(squeezed))


def repetition_share(text: str) -> float:
    """Measure how much of a text repeats what the text said before.

    Args:
        text: An answer as generated.

    Returns:
        The largest of the three shares that the module defines, in [0, 1); 0 for an empty text.
    """
    text = _COUNTER.sub("#", text.casefold())
    words = _WORD.findall(text)
    if not words:
        return _loop_share(text.replace("#", "").strip() or text, _WORDLESS_LOOP)
    if len(words) < MINIMUM_WORDS:
        return _loop_share(text)
    return max(_gram_share(words), _line_share(text), _loop_share(text))


def is_degenerate(text: str, threshold: float = DEGENERATE_SHARE) -> bool:
    """Tell whether a text mostly repeats itself.

    Args:
        text: An answer as generated.
        threshold: Repetition share in [0, 1] above which a text is degenerate.

    Returns:
        True where `repetition_share` is above the threshold. An empty text repeats nothing; that
        it also says nothing is for the checks to find.
    """
    return repetition_share(text) > threshold
