"""Code: between fences, and what is code by its form without one."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from sami_pipeline.principles.checks.base import Check, Found, times
from sami_pipeline.principles.checks.text import count_words, parts, quoted

# What no sentence looks like: statements of the languages that models write most.
_CODE_LINE = re.compile(
    r"""(?:
      (?:async\s+)?def\s+\w+\s*\(.*|class\s+\w+\s*(?:\(.*\))?\s*[:{]
    | (?:for|while)\s+[^.]*\bin\b\s.*:|(?:for|while|if|switch|catch)\s*\(.*\)\s*\{?
    | (?:(?:el)?if|while)\s+(?!.*\bthen\b).*(?:[=<>!]=|[<>()\[\]]).*:|(?:else|try|finally)\s*:
    | while\s+(?:True|1|not\s+\w+)\s*:
    | import\s+[\w.]+(?:\s+as\s+\w+)?(?:\s*,.*)?;?|from\s+[\w.]+\s+import\s+.+
    | import\s+\{?.*\bfrom\s+['"].*
    | \#\s*(?:include|define)\b.*|using\s+namespace\s+\w+;|package\s+[\w.]+;?
    | (?:public|private|protected|static|final|const|let|var|void|int|float|double|char|bool|auto)
      \s+(?:[\w<>\[\],\s*&]+(?:=.*|\(.*\)\s*\{?)|[\w<>\[\],*&]+(?:\s+[\w\[\],*&]+)?;)
    | (?:export\s+)?function\s*\w*\s*\(.*|fn\s+\w+\s*[(<].*|func\s+\w*\s*\(.*
    | (?=.*(?:=|[\w>]\(|[{}\[\]<>])|(?:return|import)\b).*;|\w+;|.*\{|(?=.*[;:=]).*\}|[}\])]+[;,]?
    | return\s+[\w.\[\]()+*/'"-]+|(?:raise|throw|yield)\s+\w+\(.*
    | [\w.]+(?:\[[^\]]*\])?\s*[-+*/]?=\s*(?:[\[{'"(]|\w[\w.]*\(|\w[\w.]*\[|lambda\b|new\s|await\s).*
    | [a-zA-Z_][\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)
    | (?-i:SELECT)\s.*\s?(?-i:FROM)\b.*|(?-i:INSERT\s+INTO|CREATE\s+TABLE|DELETE\s+FROM)\s.*
    | \$\s+[a-z].*|<\?php.*|<!DOCTYPE.*|</?(?:html|head|body|script|style|div|span|form|input)\b.*>
    )""",
    re.VERBOSE,
)
_LONGEST_LINE = 400
_FORMULA = re.compile(r"\s*\w[\w.\[\]]*\s*(?:[-+*/]|:)?=\s*\S.*")
_SENTENCE = re.compile(r"[^\W\d_].*[.!?]['\")*]*\s*$")


def is_code(line: str) -> bool:
    """Tell whether a line is code by its form; an equation such as x = 3 is not."""
    line = line.strip()
    return len(line) <= _LONGEST_LINE and bool(_CODE_LINE.fullmatch(line))


def unfenced_code(text: str) -> list[str]:
    """Return the lines outside of fences that are code by their form."""
    return [line for line in parts(text).lines if is_code(line)]


def formulas(text: str) -> list[str]:
    """Return the lines outside of fences that are nothing but an equation or an assignment."""
    return [line for line in parts(text).lines if _FORMULA.fullmatch(line)]


def _holds_code(block: str) -> bool:
    """Tell whether a fence holds code, or anything short: sentences alone are none."""
    lines = [line for line in block.splitlines() if line.strip()]
    return bool(lines) and (
        any(map(is_code, lines))
        or not all(_SENTENCE.match(line) and count_words(line) >= 5 for line in lines)
    )


class Code(Check):
    """Code between fences of three backticks or, with `no_`, no code at all.

    * `fenced_code`: a fence with something in it that is not only sentences. Fences of tildes are
      not asked for. A fence that the token limit cut open counts as closed.
    * `no_fenced_code`: neither a fence of any kind nor a line that is code by its form. Inline code
      in a sentence is allowed, and so is an equation.

    A fence that a finished text never closes is neither.
    """

    name: Literal["fenced_code", "no_fenced_code"]
    asks: ClassVar = {
        "fenced_code": "a closed block of code that starts with ```",
        "no_fenced_code": "no code",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        found = parts(text)
        if self.name == "fenced_code":
            blocks = [*found.code, found.unclosed or ""] if truncated else found.code
            holding = sum(map(_holds_code, blocks))
            evidence = times(holding, "such block")
            if not holding and found.unclosed is not None:
                evidence = "a fence that never closes"
            elif not holding and found.code:
                evidence = "a fence without code in it"
            return Found(holding > 0, evidence)
        if found.code or found.other or found.unclosed is not None:
            return Found(True, "a fence")
        lines = unfenced_code(text)
        return Found(bool(lines), f"the line {quoted(lines[0])}" if lines else "no line of code")
