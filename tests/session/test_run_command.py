"""``kedro run``: what --params says is read as it is written, lists and names of runs too."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel, ValidationError

from sami_pipeline.cli import run
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.engines.parameters import Settings, with_lists
from sami_pipeline.parameters import RunParameters
from sami_pipeline.session import experiments
from sami_pipeline.session.command_line import CommandLineError


def read(params: str) -> dict[str, Any]:
    return run.make_context("run", ["--params", params]).params["params"]


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("a.b=1,c=x,a.d=1e-5", {"a": {"b": 1, "d": 1e-5}, "c": "x"}),
        ("under_test=[base, sami],seed=1", {"under_test": ["base", "sami"], "seed": 1}),
        ("where={lang: [en,de], n: 1},s=2", {"where": {"lang": ["en", "de"], "n": 1}, "s": 2}),
        ("prefix='Once, then: ',s=2", {"prefix": "Once, then: ", "s": 2}),
        ('prefix="a, b"', {"prefix": "a, b"}),
        ("source=gsm8k:/a/{split}.jsonl,s=2", {"source": "gsm8k:/a/{split}.jsonl", "s": 2}),
        ("base=folder:/models/[x] {y},s=2", {"base": "folder:/models/[x] {y}", "s": 2}),
        ("run_name=1.10,x=1.10", {"run_name": "1.10", "x": 1.1}),
        ("run_name=007,completions_of=1e3", {"run_name": "007", "completions_of": "1e3"}),
        ("run_name=2026-11-26,y=true", {"run_name": "2026-11-26", "y": True}),
        ("run_name=no", {"run_name": "no"}),
        ("run_name='0x1f'", {"run_name": "0x1f"}),
        ("completions_of=null,a=", {"completions_of": None, "a": None}),
        ("compare_runs.runs=[1.10,007]", {"compare_runs": {"runs": ["1.10", "007"]}}),
        ("compare_runs.runs=007", {"compare_runs": {"runs": "007"}}),
        (" a = 1 , ,b=2,", {"a": 1, "b": 2}),
    ],
)
def test_values_stay_as_they_are_written(written, values):
    assert read(written) == values


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("under_test=[base,sami", ["under_test", "not closed"]),
        ("under_test='base,sami", ["under_test", "not closed"]),
        ("run_name=a,b", ["'b'", "NAME=VALUE", "brackets"]),
        ("=5", ["NAME=VALUE"]),
        ("x=@home", ["x", "quotes"]),
        ("x=a: b: c", ["x", "quotes"]),
        ("x=[1]]", ["x", "quotes"]),
    ],
)
def test_what_can_not_be_read_is_named_in_one_line(written, named):
    with pytest.raises(CommandLineError) as caught:
        read(written)
    assert caught.value.message.startswith("--params: ") and "\n" not in caught.value.message
    for part in named:
        assert part in caught.value.message


@pytest.mark.parametrize("name", [7, 1.1])
def test_a_name_of_a_run_that_yaml_has_read_as_a_number_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match="quotes"):
        RunParameters.model_validate({"run_name": name})


# Each list parameter, by its field: a list, and the same as a text of the command line.
LISTS = {
    "under_test": (("base", "sami"), "base+sami"),
    "trust_remote_code": (("base", "other"), "base+other"),
    "between": (("a", "b"), "a + b"),
    "words": (("I can't", "As an AI"), "I can't+As an AI"),
    "steps": ((2, 4), "2+4"),
    "attempts": ((1, 10), "1+10"),
    "runs": (("1.10", "007"), "1.10+007"),
    "pooled": (("1.10", "007"), "1.10+007"),
    "categories": (("math", "coding"), "math+coding"),
    "leave_out": (("seed", "stop"), "seed+stop"),
    "adamw_betas": ((0.9, 0.95), "0.9+0.95"),
    "target_modules": (("q_proj", "k_proj"), "q_proj+k_proj"),
    "trackers": (("tensorboard", "mlflow"), "tensorboard+mlflow"),
}


def _list_fields(model: type, seen: set[type]) -> Iterator[tuple[type, str]]:
    """Yield the fields of a model and of those within it that hold a list of plain values."""
    seen.add(model)
    for name, annotation in get_type_hints(model).items():
        for part in [annotation, *get_args(annotation)]:
            items = [kind for kind in [part, *get_args(part)] if isinstance(kind, type)]
            for inner in items:
                if hasattr(inner, "__annotations__") and inner not in seen:
                    yield from _list_fields(inner, seen)
            records = any(issubclass(kind, BaseModel) for kind in items)
            if get_origin(part) in (tuple, list) and not records:
                yield model, name


def test_every_list_parameter_can_be_given_as_a_short_text():
    found = [
        field for group in experiments.groups().values() for field in _list_fields(group, set())
    ]
    assert {name for _, name in found} == LISTS.keys()
    for model, name in found:
        values, text = LISTS[name]
        read = with_lists({name: text}, model)
        assert tuple(read[name]) == values, (model, name)
        if issubclass(model, Settings):
            assert _faults(model, {name: text}) == _faults(model, {name: list(values)}), name


def _faults(model: type[BaseModel], values: dict[str, Any]) -> list[tuple[Any, str]]:
    """Return the faults of a part of a group, which others of its fields may have."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [(fault["loc"], fault["msg"]) for fault in error.errors()]
    return []


@pytest.mark.parametrize("text", ["base+", "+base", "a++b", ""])
def test_a_list_with_a_gap_is_refused(text):
    with pytest.raises(ValueError, match=r"trackers: must be a list, such as \[a, b\] or a\+b"):
        with_lists({"trackers": text}, SamiTrainingConfig)
