"""YAML as written by hand: read strictly, so that a slip is named and never guessed at."""

from __future__ import annotations

from typing import Any

import yaml

from sami_pipeline.errors import InputError
from sami_pipeline.inputs import text_files

MAX_BYTES = 10_000_000
"""Of one file; the largest that the project brings has 13 kB."""
MAX_VALUES = 200_000
"""Values of one file, each alias written out: a few lines of aliases can stand for billions."""


class _Loader(yaml.SafeLoader):
    """Reads what ``yaml.safe_load`` reads, but keeps dates as text and refuses repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML declares it)
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; a key that stands twice would silently lose the first value."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice; remove one",
                        key.start_mark,
                    )  # fmt: skip
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(content: bytes, place: str) -> Any:
    """Return what a YAML file holds.

    Args:
        content: the file's bytes, in UTF-8.
        place: what the file is called in messages.

    Raises:
        InputError: not UTF-8, not YAML, a repeated key, or absurdly large; the message holds the
            line's number and nothing of the file besides.
    """
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{place}: has {len(content)} bytes, more than {MAX_BYTES}; split it, or give a table"
        )
    text = text_files.decoded(content, place)
    try:
        node = _Loader(text).get_single_node()
        if node is not None and _values(node, {}, set()) > MAX_VALUES:
            raise InputError(
                f"{place}: its aliases stand for more than {MAX_VALUES} values; write them out"
            )
        return _Loader(text).get_single_data()
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: {_reason(error)}") from error


def _values(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Return how many values a node stands for, each alias counted as what it repeats."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in open_nodes:
        raise yaml.composer.ComposerError(None, None, "an alias holds itself", node.start_mark)
    open_nodes.add(id(node))
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_values(part, known, open_nodes) for part in parts)
    open_nodes.discard(id(node))
    return known[id(node)]


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply; flatten it"
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark is not None else ""
    if isinstance(error, yaml.reader.ReaderError):
        return f"holds the control character U+{error.character:04X}; remove it"
    problem = getattr(error, "problem", None) or "a value can't be read"
    return f"{line}is no valid YAML: {problem}"
