r"""Numbers from the text of a solution, and whether two of them are the same.

GSM8K (Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168) ends
each of its solutions with ``#### `` and the answer. Two readings stand side by side, in the manner
of EleutherAI's lm-evaluation-harness (``lm_eval/tasks/gsm8k/gsm8k.yaml``, version 3.0, whose two
filters are called strict-match and flexible-extract):

1. **Strict** (`strict_answer`): the number after the last ``####``; a text without the mark has no
   answer, however right its last line may be.
2. **Flexible** (`flexible_answer`): the last number of the text, wherever it stands.

`harness_answer` and `harness_flexible_answer` give what the harness itself reads, so that a column
can be compared with published numbers. The harness cuts a text at "Question:", `</s>` and
`<|im_end|>` when it generates; that is for the engine to do, not for these functions.

`strict_answer`, `flexible_answer` and `reference_answer` return a number without thousands
separators, currency sign and percent sign, and with "-" as its minus; other than that as it was
written ("18.0", "3/4"). Whatever they return, `parse_number` reads.

Known limits of the flexible reading: a mixed number ("1 3/4") counts as its fraction, a LaTeX
fraction as its denominator, commas separate thousands only in groups of three digits (so not in
"1,00,000"), and a full stop never separates thousands.
"""

import re
from collections import deque
from fractions import Fraction

from sami_pipeline.errors import InputError

MAXIMUM_CHARACTERS = 100
"""A longer text is no number: arithmetic with a million digits would take too long."""

# Its hyphen must come first within brackets of a pattern.
_MINUS = "-\u2212"
_CURRENCY = "$€£"
_SPACES = r"[^\S\n]*"
# Each optional part owns the spaces after it: a run of spaces matches in one way only, and fast.
_SIGN = rf"(?:([{_MINUS}+]){_SPACES})?"
_CURRENCY_SIGN = rf"(?:\\?[{_CURRENCY}]{_SPACES})?"
_EXPONENT = r"(?:[eE][-+]?[0-9]+)?"

# As GSM8K's own grader does, drop commas wherever they stand between digits.
_DECIMAL = r"(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"{_SIGN}{_CURRENCY_SIGN}{_SIGN}({_DECIMAL})(?:/({_DECIMAL}))?{_SPACES}(?:\\?[%{_CURRENCY}])?"
)

# Ends in a digit, so that a full stop or comma after the number is no part of it.
_RUN = r"[0-9.,]*[0-9]"
_MARKED = re.compile(rf"####{_SPACES}{_SIGN}{_CURRENCY_SIGN}{_SIGN}({_RUN}(?:/{_RUN})?{_EXPONENT})")

# ".5" is a number, but "No.5" and "...5" hold the number 5.
_PART = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
_ANYWHERE = re.compile(rf"{_PART}(?:/{_PART})*{_EXPONENT}")

_HARNESS_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_HARNESS_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def parse_number(text: str | None) -> Fraction | None:
    """Read a text that is one number and nothing else.

    Args:
        text: For example "18", "-1,234.50", "$5", "3/4", "50%" or None.

    Returns:
        The exact number, None where the text is no number. A percent sign is dropped, as in GSM8K's
        answers: "50%" is 50 and not 1/2. Commas between digits are dropped. No numbers are: a form
        with an exponent ("1e5"), a fraction with denominator 0, two signs, words or units besides
        the number, and texts of more than `MAXIMUM_CHARACTERS` characters.
    """
    if text is None or len(text) > MAXIMUM_CHARACTERS:
        return None
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (found[1] and found[2]):
        return None
    value = Fraction(found[3].replace(",", ""))
    if found[4] is not None:
        divisor = Fraction(found[4].replace(",", ""))
        if divisor == 0:
            return None
        value /= divisor
    return -value if (found[1] or found[2] or "+") in _MINUS else value


def same_number(a: str | None, b: str | None) -> bool:
    """Tell whether two texts are the same number, exactly.

    Args:
        a: A text as `parse_number` reads it.
        b: Another one.

    Returns:
        True where both are numbers and equal: "18.0" and "$18", "1/2" and "0.50", "1,000" and
        "+01000", "50%" and "50". There is no tolerance: "0.33" is not "1/3". What is no number
        equals nothing, not even itself.
    """
    first, second = parse_number(a), parse_number(b)
    return first is not None and first == second


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _cleaned(number: str, negative: bool) -> str | None:
    answer = "-" * negative + number.replace(",", "")
    return None if parse_number(answer) is None else answer


def strict_answer(text: str) -> str | None:
    r"""Find the number that a solution marks as its answer in GSM8K's format.

    The format is ``#### (\-?[0-9\.\,]+)``, and the *last* such mark counts: a model may recite
    examples before it answers. The harness takes the first (`harness_answer`). Further differences:
    spaces after the mark are free, a currency sign may stand there, a fraction and a plus or
    Unicode minus are read, and a mark is one only with a digit after it.

    Args:
        text: A solution as generated.

    Returns:
        The number as the module describes it, None without a mark or where what is marked last is
        no number ("1.2.3", "1e5").
    """
    found = _last(_MARKED, text)
    if found is None or (found[1] and found[2]):
        return None
    return _cleaned(found[3], (found[1] or found[2] or "+") in _MINUS)


def has_sign(text: str, start: int) -> bool:
    """Tell whether a minus before the number at `start` is a sign, no dash and no subtraction."""
    line = text[text.rfind("\n", 0, start) + 1 : start].rstrip(_CURRENCY + "\\")
    if not line.rstrip().endswith(tuple(_MINUS)):
        return False
    rest = line.rstrip()[:-1]
    before = rest.rstrip()
    if line != line.rstrip():
        return before.endswith("=")
    # Next to a word or another dash it is a dash; after a number or closing bracket a subtraction.
    no_sign_after = rf"[{_MINUS}\w)\]}}%]" if rest == before else r"[0-9)\]}%]"
    return re.fullmatch(no_sign_after, before[-1:]) is None


def flexible_answer(text: str) -> str | None:
    """Find the last number of a text.

    This is what the harness's ``(-?[$0-9.,]{2,})|(-?[0-9]+)`` is after, with these repairs: "3/4"
    is one number (but "12/05/2020" three); a full stop or comma at the end is no part of a number;
    "1,000" is one number and "1, 2" two; a minus counts only where it is a sign ("= -3", not "5-3",
    "5 - 3", "- 3 apples" or "A-3"); and punctuation alone (".", "$,") is no number.

    Args:
        text: A solution as generated.

    Returns:
        The number as the module describes it, None where there is none. If the last one has an
        exponent or too many digits to count as a number, there is no answer either: the text did
        not end with the number before it.
    """
    found = _last(_ANYWHERE, text)
    if found is None:
        return None
    number, start = found[0], found.start()
    parts = number.split("/")
    if len(parts) > 2 or (len(parts) == 2 and not parts[1].strip("0.,")):
        number, start = parts[-1], found.end() - len(parts[-1])
    return _cleaned(number, has_sign(text, start))


def _harness_cleaned(answer: str) -> str:
    # The harness also removes "(?s).*#### ". No answer holds that, and the search would take time
    # that grows with the square of the length.
    return answer.replace(",", "").replace("$", "").removesuffix(".")


def harness_answer(text: str) -> str | None:
    r"""Read an answer exactly as lm-evaluation-harness does with the filter strict-match.

    That is the *first* match of ``#### (\-?[0-9\.\,]+)``, without what the metric's
    ``regexes_to_ignore`` remove: commas, dollar signs and one full stop at the end. The harness
    then compares strings, so "18.0" is wrong where "18" is right.

    Args:
        text: A solution as generated.

    Returns:
        The string that the harness compares, which may be empty or no number; None where it would
        say "[invalid]".
    """
    found = _HARNESS_STRICT.search(text)
    return None if found is None else _harness_cleaned(found[1])


def harness_flexible_answer(text: str) -> str | None:
    """Read an answer exactly as lm-evaluation-harness does with the filter flexible-extract.

    That is the last match of ``(-?[$0-9.,]{2,})|(-?[0-9]+)``, cleaned as in `harness_answer`. Its
    faults are kept: "5-3" ends in -3, and a text that ends in "..." in "..".

    Args:
        text: A solution as generated.

    Returns:
        The string that the harness compares, which may be empty or no number; None where it would
        say "[invalid]".
    """
    found = _last(_HARNESS_FLEXIBLE, text)
    return None if found is None else _harness_cleaned(found[0])


def published_answer(text: str) -> str | None:
    """Read an answer as the code of arXiv 2410.01704 does: the last integer after the last "=".

    The text is cut at a next "Q:". Where no "=" is left the whole text is looked at. It is kept
    with its faults, to compare with the published figures: "= 3.50" ends in 50.

    Args:
        text: A solution as generated.

    Returns:
        The integer's digits with its sign, commas left out; None where there is none.
    """
    solution = text.partition("Q:")[0]
    found = re.findall(r"-?\d+", solution.rpartition("=")[2].replace(",", ""))
    return found[-1] if found else None


def reference_answer(solution: str) -> str:
    """Return the one number after the last ``####`` of one of GSM8K's solutions.

    Args:
        solution: The dataset's field ``answer``.

    Returns:
        The number as the module describes it.

    Raises:
        InputError: If there is no ``####``, no number follows the last one, the number has a comma
            that separates no thousands ("3,5"): a decimal comma, or several answers; or another
            number follows on the line: "1 000", "3:30", "5 6".
    """
    _, mark, end = solution.rpartition("####")
    answer = strict_answer(mark + end)
    if answer is None:
        raise InputError(
            f"solution ends in {solution[-60:]!r}: no number follows the last ####; "
            "end it with a line such as '#### 18'"
        )
    marked = _last(_MARKED, mark + end)
    written, rest = marked[3], (mark + end)[marked.end() :].partition("\n")[0]
    # A digit within a word, such as m2, is a unit's.
    if re.search(r"(?<![^\W\d_])\d", rest):
        raise InputError(
            f"solution ends in {solution[-60:]!r}: more than {written} follows the last ####; "
            "write one number there: 1000 and not 1 000, 3.5 and not 3:30"
        )
    if "," in written and not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", written):
        raise InputError(
            f"solution ends in {solution[-60:]!r}: the comma in {written} separates no thousands; "
            "write a decimal point, or one number"
        )
    return answer
