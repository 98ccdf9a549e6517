"""The blocks of a text that a model wrote: code, list items and the rest, for a page to set.

Nothing is interpreted but where a block begins and ends: its characters stay as they are, since the
checks judge them, and joining the blocks by line breaks gives the text again.
"""

from __future__ import annotations

import re

CODE, ITEM, TEXT = "code", "item", "text"
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"\s*(?:[-*+•]|\(?\d{1,3}[.)])\s+\S")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks of a text in their order, each with its kind.

    Args:
        text: as a model wrote it.

    Returns:
        ``("code", ...)`` from a fence to the one that closes it or the end, both lines included;
        ``("item", ...)`` for a list item, each by itself, with the indented lines that follow it;
        ``("text", ...)`` for all lines between.
    """
    found: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.split("\n"):
        opens = _FENCE.match(line)
        last = found[-1][0] if found else ""
        continues = last == TEXT or (last == ITEM and line[:1].isspace() and line.strip())
        if fence:
            found[-1][1].append(line)
            if opens and opens[1].startswith(fence) and line.strip() == opens[1]:
                fence = ""
                found.append((TEXT, []))
        elif opens:
            fence = opens[1]
            found.append((CODE, [line]))
        elif _ITEM.match(line):
            found.append((ITEM, [line]))
        elif continues:
            found[-1][1].append(line)
        else:
            found.append((TEXT, [line]))
    return [(kind, "\n".join(lines)) for kind, lines in found if lines]
