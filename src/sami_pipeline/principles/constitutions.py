"""Principles with their antitheses, and the contrasting constitutions sampled from them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sami_pipeline.errors import InputError, first_fault
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.inputs.records import plain_text
from sami_pipeline.principles.checks import parse_check

DESIRED = "desired"
CONTRASTING = "contrasting"
# The desired constitution in evaluation, in the words that were trained on.
TRAINED_WORDING = "desired_trained_wording"

OPPOSITE = {"principle": "antithesis", "antithesis": "principle"}
"""The other stance of each."""

Contrast = Literal["sampled", "opposite"]
# How the constitutions that train are drawn; pairs gives grids without the desired one too.
TrainingContrast = Literal["sampled", "opposite", "pairs"]
# A statement is written in one wording to train on and may be in another to evaluate with.
Use = Literal["training", "evaluation"]
# The wordings of each (principle, "principle" | "antithesis"): one or more texts.
Wordings = Mapping[tuple[str, str], Sequence[str]]


def _readable(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; write the text")
    return plain_text(text)


_Text = Annotated[str, Field(min_length=1), AfterValidator(_readable)]
_Texts = Annotated[
    tuple[_Text, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1),
]


class EvaluationWordings(BaseModel):
    """How a principle and its antithesis are worded in evaluation, in words not trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    principle: _Texts | None = None
    antithesis: _Texts | None = None


class Principle(BaseModel):
    """A principle and its antithesis; where they are verifiable, each names its check.

    Each has one wording or a list of them, under which responses are written and trained, and may
    have others for evaluation (arXiv 2410.01704 trains on a strong wording and tests on a weak
    one). The check stands for what all wordings ask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_.]*$")
    principle: _Texts
    antithesis: _Texts
    evaluation: EvaluationWordings = EvaluationWordings()
    check: dict[str, Any] | None = None
    antithesis_check: dict[str, Any] | None = None

    @field_validator("check", "antithesis_check")
    @classmethod
    def _known_check(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            parse_check(value)
        return value

    @model_validator(mode="after")
    def _sides_differ(self) -> Principle:
        for use in ("training", "evaluation"):
            sides = [set(map(_bare, each[use])) for each in self.wordings().values()]
            if sides[0] & sides[1]:
                raise ValueError(
                    f"antithesis: of {self.id} says what the principle says ({use}); write its "
                    "opposite"
                )
        return self

    @model_validator(mode="after")
    def _both_or_none(self) -> Principle:
        if (self.check is None) != (self.antithesis_check is None):
            raise ValueError("check and antithesis_check: give both, or neither")
        return self

    def wordings(self) -> dict[str, dict[str, list[str]]]:
        """Return the wordings of each use of "principle" and "antithesis"."""
        trained = {"principle": self.principle, "antithesis": self.antithesis}
        return {
            stance: {
                "training": list(texts),
                "evaluation": list(getattr(self.evaluation, stance) or texts),
            }
            for stance, texts in trained.items()
        }


def _bare(text: str) -> str:
    """Return a text as it is compared: spaces, case and the full stop make no difference."""
    return " ".join(text.casefold().split()).rstrip(".")


class CategoryPrinciples(BaseModel):
    """The principles of one category: the contents of one YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str
    written_by: str = "a person"
    principles: tuple[Principle, ...] = Field(min_length=1)

    @field_validator("category")
    @classmethod
    def _known_category(cls, value: str, info: ValidationInfo) -> str:
        known = MT_BENCH_CATEGORIES if info.context is None else info.context["categories"]
        if known is not None and value not in known:
            raise ValueError(f"unknown category {value!r}; known: {', '.join(known)}")
        return value

    @field_validator("principles")
    @classmethod
    def _unique_ids(cls, value: tuple[Principle, ...]) -> tuple[Principle, ...]:
        ids = [principle.id for principle in value]
        for principle_id, times in Counter(ids).items():
            if times > 1:
                raise ValueError(f"the id {principle_id!r} is used {times} times")
        return value


def parse_principles(
    specifications: Mapping[str, Any], categories: Sequence[str] | None = MT_BENCH_CATEGORIES
) -> dict[str, CategoryPrinciples]:
    """Return the principles of all files by category.

    Args:
        specifications: parsed YAML by file name.
        categories: what principles may be written for; None takes any.

    Raises:
        InputError: one line naming the file, the field and what is wrong with it.
    """
    by_category: dict[str, CategoryPrinciples] = {}
    owners: dict[str, str] = {}
    for file_name, content in _contents(specifications):
        try:
            parsed = CategoryPrinciples.model_validate(content, context={"categories": categories})
        except ValidationError as error:
            raise InputError(f"principles file {file_name}: {first_fault(error)}") from error
        if parsed.category in owners:
            raise InputError(
                f"principles file {file_name}: category: {parsed.category!r} is already defined "
                f"in {owners[parsed.category]}; merge the two files"
            )
        owners[parsed.category] = file_name
        by_category[parsed.category] = parsed
    return by_category


def _contents(specifications: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the content of each category by file name; a published file holds several."""
    for file_name in sorted(specifications):
        content = specifications[file_name]
        if isinstance(content, Mapping) and content and all(map(_is_published, content.values())):
            yield from ((file_name, each) for each in _published_categories(content))
        else:
            yield file_name, content


def _is_published(entry: Any) -> bool:
    return isinstance(entry, Mapping) and bool({"strong", "paraphrases"} & entry.keys())


def _published_categories(content: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the categories of a principles file of arXiv 2410.01704's repository.

    Args:
        content: by the principle's id, for MT-Bench ``strong`` (to write and train with),
            ``antithesis``, ``weak`` (to evaluate with) and ``relevant_for``, the categories; for
            math ``paraphrases``, ``paraphrases_antithesis`` and ``definition``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, entry in content.items():
        principle = {
            "id": name,
            "principle": entry.get("strong") or entry.get("paraphrases"),
            "antithesis": entry.get("antithesis") or entry.get("paraphrases_antithesis"),
            "evaluation": {"principle": entry.get("weak") or entry.get("definition")},
        }
        for category in entry.get("relevant_for", ["math"]):
            found.setdefault(category, []).append(principle)
    return [
        {"category": category, "written_by": "arXiv 2410.01704", "principles": principles}
        for category, principles in found.items()
    ]


def tabulate_principles(
    specifications: Mapping[str, Any], categories: Sequence[str] | None = MT_BENCH_CATEGORIES
) -> pd.DataFrame:
    """Return the principles of all files as one table, one row per principle of a category.

    Args:
        specifications: parsed YAML by file name.
        categories: what principles may be written for; None takes any.

    Returns:
        ``category, principle, statement, antithesis, wordings, check, antithesis_check,
        written_by``; the first wording of each stance, all wordings of each use as JSON, the
        checks as JSON, empty where a principle is not verifiable.

    Raises:
        InputError: one line naming the file, the field and what is wrong with it.
    """
    rows = [
        {
            "category": category,
            "principle": item.id,
            "statement": item.principle[0],
            "antithesis": item.antithesis[0],
            "wordings": json.dumps(item.wordings(), ensure_ascii=False),
            "check": json.dumps(item.check) if item.check else "",
            "antithesis_check": json.dumps(item.antithesis_check) if item.antithesis_check else "",
            "written_by": parsed.written_by,
        }
        for category, parsed in parse_principles(specifications, categories).items()
        for item in parsed.principles
    ]
    if not rows:
        raise InputError("principles: no file was found; write one YAML file for each category")
    return pd.DataFrame(rows)


def sample_constitutions(
    queries: pd.DataFrame,
    principles: pd.DataFrame,
    *,
    n_constitutions: int,
    seed: int,
    contrast: TrainingContrast = "sampled",
    pairs_per_query: int = 1,
    pairs_differ_in: str | None = None,
    use: Use = "training",
) -> pd.DataFrame:
    """Return contrasting constitutions for every query.

    A constitution takes each principle of the query's category or its antithesis. The first is
    the desired one, all principles; the others are distinct, drawn without replacement, or with
    ``contrast="opposite"`` begin with the one that takes every antithesis. With
    ``contrast="pairs"`` (arXiv 2410.01704) a query has pairs of different constitutions, drawn
    from all pairs that there are; in each the one with more principles comes first.

    Args:
        queries: ``query_id, category``.
        principles: as from ``tabulate_principles``.
        n_constitutions: of a grid; at least 2, at most 2 to the number of the category's
            principles.
        seed: decides, with the query's id, which contrasts are taken and in what order the
            statements stand. The order never depends on which constitution it is.
        contrast: see above.
        pairs_per_query: grids of a query with ``contrast="pairs"``; where there are fewer pairs,
            all are taken.
        pairs_differ_in: a principle on which the constitutions of a pair must differ.
        use: whose wordings are taken.

    Returns:
        One row per (query, constitution of a grid): ``query_id, category, grid,
        constitution_index, constitution`` ("desired" or "contrasting"), ``stances`` (JSON list of
        [principle, "principle" | "antithesis"] in the order they are written), ``text``.
        ``grid`` counts a query's grids from 0; the index goes through all of them.

    Raises:
        InputError: fewer than 2 constitutions, more than there are, other than 2 for pairs, a
            category without principles, or one without the principle to differ in.
    """
    if n_constitutions < 2:
        raise InputError(
            f"n_constitutions: must be at least 2 to have a contrast, got {n_constitutions}"
        )
    if contrast == "pairs" and n_constitutions != 2:
        raise InputError(
            f"n_constitutions: contrast: pairs makes grids of 2, got {n_constitutions}; set it to 2"
        )
    by_category = dict(tuple(principles.groupby("category", sort=True)))
    missing = sorted(set(queries["category"]) - set(by_category))
    if missing:
        raise InputError(f"principles: none for category {', '.join(missing)}; write a file for it")
    names = {category: table["principle"].tolist() for category, table in by_category.items()}
    words = {category: wording(table, use) for category, table in by_category.items()}
    rows = []
    for query_id, category in zip(queries["query_id"], queries["category"], strict=True):
        count = len(names[category])
        generator = random.Random(f"{seed}/constitutions/{query_id}")
        # One order for all constitutions of a query: position must not give the stance away.
        order = generator.sample(range(count), count)
        chosen_words = choose_wordings(words[category], f"{seed}/{query_id}")
        if contrast == "pairs":
            apart = _position(names[category], pairs_differ_in, category)
            drawn = _choose_pairs(count, pairs_per_query, apart, generator)
        else:
            drawn = [_choose_stances(count, n_constitutions, contrast, generator, category)]
        for index, (grid, takes) in enumerate(
            (number, takes) for number, constitutions in enumerate(drawn) for takes in constitutions
        ):
            stances = [
                (names[category][i], "principle" if takes[i] else "antithesis") for i in order
            ]
            rows.append(
                {
                    "query_id": query_id,
                    "category": category,
                    "grid": grid,
                    "constitution_index": index,
                    "constitution": DESIRED if all(takes) else CONTRASTING,
                    "stances": json.dumps(stances),
                    "text": format_statements(stances, chosen_words),
                }
            )
    return pd.DataFrame(rows)


def desired_in_trained_wording(
    queries: pd.DataFrame, principles: pd.DataFrame, *, seed: int
) -> pd.DataFrame:
    """Return the desired constitution in its training wording, where evaluation has another one.

    Args:
        queries: ``query_id, category``.
        principles: as from ``tabulate_principles``.
        seed: as for ``sample_constitutions``; statements stand in the same order.

    Returns:
        As from ``sample_constitutions``, one row for each query whose category words its
        principles differently in evaluation; its ``constitution`` is ``TRAINED_WORDING``.
    """
    apart = {
        category
        for category, rows in principles.groupby("category")
        if any(
            set(words["principle"]["training"]) != set(words["principle"]["evaluation"])
            for words in map(json.loads, rows["wordings"])
        )
    }
    asked = queries[queries["category"].isin(apart)]
    if asked.empty:
        raise InputError(
            "evaluation.trained_wording: no principle is worded differently in evaluation; give "
            "principles an evaluation wording, or set it to false"
        )
    made = sample_constitutions(asked, principles, n_constitutions=2, seed=seed, use="training")
    made = made[made["constitution"] == DESIRED]
    # After the desired and the contrasting one.
    return made.assign(constitution=TRAINED_WORDING, constitution_index=2).reset_index(drop=True)


def _choose_stances(
    count: int, wanted: int, contrast: TrainingContrast, generator: random.Random, category: str
) -> list[tuple[bool, ...]]:
    if wanted > 2**count:
        raise InputError(
            f"n_constitutions: {wanted} asked for, but category {category!r} has {count} "
            f"principles and so only {2**count} constitutions; add principles"
        )
    all_of_them = (True,) * count
    others = [s for s in itertools.product((True, False), repeat=count) if s != all_of_them]
    generator.shuffle(others)
    if contrast == "opposite":
        others.sort(key=lambda stances: any(stances))
    return [all_of_them, *others[: wanted - 1]]


def _choose_pairs(
    count: int, wanted: int, apart: int | None, generator: random.Random
) -> list[tuple[tuple[bool, ...], tuple[bool, ...]]]:
    constitutions = list(itertools.product((True, False), repeat=count))
    generator.shuffle(constitutions)
    # A stable sort: of two with equally many principles either may come first.
    constitutions.sort(key=sum, reverse=True)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(constitutions, 2)
        if apart is None or one[apart] != other[apart]
    ]
    return generator.sample(pairs, min(wanted, len(pairs)))


def count_pairs(principles: int, pairs_differ_in: str | None = None) -> int:
    """Return how many pairs of different constitutions so many principles have.

    Args:
        principles: how many.
        pairs_differ_in: a principle on which they must differ, as for ``sample_constitutions``.
    """
    constitutions = 2**principles
    if pairs_differ_in is None:
        return math.comb(constitutions, 2)
    return (constitutions // 2) ** 2


def _position(names: Sequence[str], principle: str | None, category: str) -> int | None:
    if principle is None:
        return None
    if principle not in names:
        raise InputError(
            f"constitutions.pairs_differ_in: category {category} has no principle {principle!r}; "
            f"known: {', '.join(names)}"
        )
    return names.index(principle)


def format_constitution(
    stances: Sequence[tuple[str, str]], principles: pd.DataFrame, use: Use = "training"
) -> str:
    """Return the statements of a constitution as text, one numbered line each.

    A single statement stands alone, without a number.

    Args:
        stances: (principle, "principle" | "antithesis") pairs.
        principles: the rows of one category.
        use: whose wordings are taken, the first of each.
    """
    return format_statements(stances, choose_wordings(wording(principles, use), None))


def wording(principles: pd.DataFrame, use: Use = "training") -> Wordings:
    """Return the wordings of each (principle, "principle" | "antithesis") of one category."""
    return {
        (name, stance): tuple(texts[use])
        for name, wordings in zip(principles["principle"], principles["wordings"], strict=True)
        for stance, texts in json.loads(wordings).items()
    }


def choose_wordings(words: Wordings, key: str | None) -> dict[tuple[str, str], str]:
    """Return one wording of each statement, drawn by ``key``; None takes the first of each."""
    return {
        (name, stance): texts[0]
        if key is None or len(texts) == 1
        else random.Random(f"{key}/wording/{name}/{stance}").choice(texts)
        for (name, stance), texts in words.items()
    }


def format_statements(
    stances: Sequence[tuple[str, str]],
    words: Mapping[tuple[str, str], str],
    generator: random.Random | None = None,
) -> str:
    """Return a constitution as text, from wordings chosen once for many.

    Args:
        stances: (principle, "principle" | "antithesis") pairs.
        words: as from ``choose_wordings``.
        generator: shuffles the statements, as for training prompts; None keeps the order.
    """
    statements = [words[name, stance] for name, stance in stances]
    if generator is not None:
        generator.shuffle(statements)
    if len(statements) == 1:
        return statements[0]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(statements, start=1))


def statements_in(
    constitution: str, stances: Sequence[tuple[str, str]], principles: pd.DataFrame
) -> dict[tuple[str, str], str]:
    """Return each statement of a constitution in the wording that was drawn for it.

    Args:
        constitution: its text, as from ``format_statements``.
        stances: its (principle, "principle" | "antithesis") pairs, in the order of the text.
        principles: the rows of its category, with the wordings of every use.

    Raises:
        ValueError: a statement stands in none of its wordings where it should.
    """
    words = [wording(principles, use) for use in ("training", "evaluation")]
    found, rest = {}, constitution
    for number, stance in enumerate(stances, start=1):
        mark = f"{number}. " if len(stances) > 1 else ""
        texts = {text for by_use in words for text in by_use[stance]}
        here = [text for text in texts if rest.startswith(mark + text)]
        if not here:
            raise ValueError(f"no wording of {' '.join(stance)!r} begins {rest!r}")
        # A wording may begin like another one.
        found[stance] = max(here, key=len)
        rest = rest[len(mark + found[stance] + "\n") :]
    return found
