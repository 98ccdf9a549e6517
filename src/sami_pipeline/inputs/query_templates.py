"""The project's own training prompts: templates with slots, filled to distinct queries."""

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from string import Formatter
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES

Category = Literal[*MT_BENCH_CATEGORIES]

_STRICT = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
_REMEDIES = {
    "extra_forbidden": "unknown field; remove it",
    "missing": "the field is missing; add it",
}


class QueryTemplate(BaseModel):
    """One text whose `{slots}` are filled to give prompts."""

    model_config = _STRICT

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)

    def slot_names(self) -> list[str]:
        """Return the distinct slot names in their order of appearance.

        Raises:
            ValueError: if the braces do not match or hold more than a plain name.
        """
        try:
            parts = list(Formatter().parse(self.text))
        except ValueError as error:
            raise ValueError(
                f"template '{self.id}': {error}; write a literal brace twice"
            ) from None
        for _, name, format_specification, conversion in parts:
            if name is not None and (not name.isidentifier() or format_specification or conversion):
                raise ValueError(
                    f"template '{self.id}': '{{{name}}}' is not a plain slot; "
                    "write {slot_name}, or double a literal brace"
                )
        return list(dict.fromkeys(name for _, name, _, _ in parts if name is not None))


class PromptSpecification(BaseModel):
    """The templates of one category and the fillers of their slots."""

    model_config = _STRICT

    category: Category
    templates: list[QueryTemplate] = Field(min_length=1)
    slots: dict[str, list[str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_references(self) -> "PromptSpecification":
        seen, used = set(), set()
        for template in self.templates:
            if template.id in seen:
                raise ValueError(f"templates: the id '{template.id}' is used twice; rename one")
            seen.add(template.id)
            try:
                names = template.slot_names()
            except ValueError as error:
                raise ValueError(f"templates: {error}") from None
            for name in names:
                if not self.slots.get(name):
                    raise ValueError(
                        f"slots: '{name}', which template '{template.id}' uses, has no fillers; "
                        "add some"
                    )
            used.update(names)
        unused = sorted(set(self.slots) - used)
        if unused:
            raise ValueError(f"slots: no template uses {unused}; remove or use them")
        return self

    def prompts(self, template: QueryTemplate, generator: random.Random) -> Iterator[str]:
        """Yield every prompt of a template once, in random order and without building them all.

        Returns:
            An iterator over the filled texts; a template without slots yields one.
        """
        names = template.slot_names()
        sizes = [len(self.slots[name]) for name in names]
        seen = set()
        for position in _shuffled_range(math.prod(sizes), generator):
            fillers = {}
            for name, size in zip(names, sizes, strict=True):
                position, choice = divmod(position, size)
                fillers[name] = self.slots[name][choice]
            prompt = template.text.format(**fillers)
            if prompt not in seen:
                seen.add(prompt)
                yield prompt


def build_training_prompts(
    specifications: Mapping[str, dict[str, Any]], per_category: int, seed: int
) -> pd.DataFrame:
    """Draw distinct prompts of every category, balanced over its templates.

    The result depends on the content of the files and the seed, not on their order.

    Args:
        specifications: content of each file by file name; one file per category.
        per_category: number of prompts of each category, at least 1.
        seed: another seed gives another selection.

    Returns:
        Columns `query_id` (such as "writing-0007"), `category`, `query` and `source` (the
        template's id), categories in the order of `MT_BENCH_CATEGORIES`.

    Raises:
        InputError: if a file is invalid, two share a category, there is no file, or a category
            has too few prompts.
    """
    if per_category < 1:
        raise InputError(f"per_category: {per_category} is too small; use at least 1")
    if not specifications:
        raise InputError("training prompts: there is no file; add one per category")
    by_category: dict[str, tuple[str, PromptSpecification]] = {}
    for file_name in sorted(specifications):
        specification = _validated(file_name, specifications[file_name])
        if specification.category in by_category:
            other_file = by_category[specification.category][0]
            raise InputError(
                f"{file_name}: category: '{specification.category}' is also in {other_file}; "
                "keep one file per category"
            )
        by_category[specification.category] = (file_name, specification)

    rows = []
    for category in MT_BENCH_CATEGORIES:
        if category not in by_category:
            continue
        file_name, specification = by_category[category]
        drawn = _draw(specification, per_category, random.Random(f"{seed}/{category}"))
        if len(drawn) < per_category:
            raise InputError(
                f"{file_name}: templates: {category} has only {len(drawn)} distinct prompts but "
                f"{per_category} were asked for; add templates or fillers, or lower per_category"
            )
        rows += [
            (f"{category}-{index:04d}", category, query, source)
            for index, (source, query) in enumerate(drawn)
        ]
    return pd.DataFrame(rows, columns=["query_id", "category", "query", "source"])


def word_ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """Return the runs of `n` lower-cased words of a text; none if it has fewer words.

    Raises:
        ValueError: if `n` is less than 1.
    """
    return set(_ngram_sequence(text, n))


def shared_ngrams(queries: pd.DataFrame, references: Iterable[str], n: int = 8) -> pd.DataFrame:
    """Find the runs of `n` words that queries share with reference texts.

    Args:
        queries: columns `query_id` and `query`.
        references: texts that the queries must not repeat.
        n: number of words of a run.

    Returns:
        Columns `query_id` and `ngram` (words joined by blanks), one row for each shared run in the
        order of the text; empty if nothing is shared.

    Raises:
        ValueError: if `n` is less than 1.
    """
    known = {ngram for text in references for ngram in _ngram_sequence(text, n)}
    rows = [
        (query_id, " ".join(ngram))
        for query_id, query in zip(queries["query_id"], queries["query"], strict=True)
        for ngram in dict.fromkeys(_ngram_sequence(query, n))
        if ngram in known
    ]
    return pd.DataFrame(rows, columns=["query_id", "ngram"])


def _validated(file_name: str, content: Any) -> PromptSpecification:
    try:
        return PromptSpecification.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
    if problem["type"] == "value_error":
        # The message of the cross-field check names its field itself.
        raise InputError(f"{file_name}: {problem['ctx']['error']}")
    field = ".".join(map(str, problem["loc"])) or "content"
    message = _REMEDIES.get(problem["type"], f"{problem['msg']}, not {problem['input']!r:.60}")
    raise InputError(f"{file_name}: {field}: {message}")


def _draw(
    specification: PromptSpecification, count: int, generator: random.Random
) -> list[tuple[str, str]]:
    templates = generator.sample(specification.templates, len(specification.templates))
    sources = [(template.id, specification.prompts(template, generator)) for template in templates]
    drawn: dict[str, str] = {}
    while sources and len(drawn) < count:
        remaining = []
        for source, prompts in sources:
            prompt = next((prompt for prompt in prompts if prompt not in drawn), None)
            if prompt is not None:
                drawn[prompt] = source
                remaining.append((source, prompts))
        sources = remaining
    return [(source, prompt) for prompt, source in drawn.items()][:count]


def _shuffled_range(size: int, generator: random.Random) -> Iterator[int]:
    # A Fisher-Yates shuffle that stores only the positions it has moved.
    moved: dict[int, int] = {}
    for last in reversed(range(size)):
        chosen = generator.randrange(last + 1)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.pop(last, last)


def _ngram_sequence(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n: {n} is too small; use at least 1")
    words = re.findall(r"[a-z0-9']+", text.lower())
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
