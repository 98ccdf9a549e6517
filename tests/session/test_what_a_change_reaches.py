"""Exactly what depends on a change in the code is made again; real files are changed, in a copy."""

import re

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    pytest.mark.filterwarnings("ignore:One or more dataset names contain"),
]
TRAINING = r"train_\w+"
ANSWERING = (r"(answer|respond)_as_\w+", "write_responses")
REPORT = ("write_report",)
FLIPPED = "-0.5 * (F.cross_entropy(logprobs, target) + F.cross_entropy(logprobs.T, target))"
# What is changed, and the nodes that reach it; those that follow from them are known by the graph.
CHANGES = {
    "a comment": ("core/objective.py", "def sami_loss(", "# The loss.\ndef sami_loss(", ()),
    "a docstring": ("core/objective.py", "Return the two-sided SAMI loss", "Give the loss", ()),
    "the sign of the loss": ("core/objective.py", FLIPPED[1:], FLIPPED, (TRAINING,)),
    "what is DPO's own": (
        "training/baselines/dpo.py",
        "DpoObjective(parameters.beta)",
        "DpoObjective(2 * parameters.beta)",
        ("train_dpo",),
    ),
    "the loss of DPO": (
        "core/dpo.py",
        "gains[i, i] - gains[i, j]",
        "gains[i, j] - gains[i, i]",
        ("train_dpo",),
    ),
    "the report's style": ("reporting/template/report.css", "{", "{ color: red;", REPORT),
    "the report's template": (
        "reporting/template/report.html",
        "</main>",
        "<p>More.</p></main>",
        REPORT,
    ),
    "the report's tables": ("reporting/page.py", "autoescape=True", "autoescape=bool(1)", REPORT),
    "a figure": (
        "figures.py",
        "def win_rates(",
        "@(lambda function: function)\ndef win_rates(",
        ("draw_win_rates",),
    ),
    "the checklist judge": (
        "evaluation/checklist.py",
        '["model", "opponent"], "tie")',
        '["opponent", "model"], "tie")',
        ("judge_answers", "tabulate_controls", *REPORT),
    ),
    "a check that principles name": (
        "principles/checks/letters.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\nprint\n",
        (
            "check_answers",
            "build_principles",
            "measure_teacher",
            r"tabulate_(steerability|controls)",
            *REPORT,
        ),
    ),
    "another engine": (
        "engines/vllm_engine.py",
        "class VllmEngine",
        "NEW = 1\n\n\nclass VllmEngine",
        (),
    ),
    "settings of another engine": (
        "engines/parameters.py",
        "class OpenAIParameters(Settings):\n",
        "class OpenAIParameters(Settings):\n    more: int = 3\n",
        (),
    ),
    "the engine that writes": (
        "engines/transformers_engine.py",
        "class TransformersEngine:",
        "@(lambda kind: kind)\nclass TransformersEngine:",
        ANSWERING,
    ),
    "how a prompt becomes text": (
        "models/prompts.py",
        'if begins else "") + self.text',
        'if begins else " ") + self.text',
        (*ANSWERING, "prepare_responses", "import_base", "write_report", TRAINING),
    ),
    "a schema that nothing uses": (
        "schemas.py",
        "class WinRates(",
        "class Unused:\n    pass\n\n\nclass WinRates(",
        (),
    ),
}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@pytest.fixture(scope="module")
def before(graph):
    """What each node's outputs are made from by the code as it is."""
    return graph.origins()


@pytest.mark.parametrize("what", CHANGES)
def test_exactly_what_depends_on_a_change_is_made_again(what, graph, before, sources):
    file, old, new, reaching = CHANGES[what]
    sources(file, old, new)
    after = graph.origins()
    changes = {name: after[name].changed_since(before[name]) for name in after}
    direct = {name for name in after if matches(name, reaching)}
    assert all(any(matches(name, (each,)) for name in direct) for each in reaching)
    assert {name for name, change in changes.items() if change.code} == direct
    assert {name for name in after if after[name] != before[name]} == graph.following(direct)
    module = file.removesuffix(".py").replace("/", ".")
    for change in changes.values():
        if change.code and file.endswith(".py"):
            assert change.code == (module,)


def test_another_version_of_a_package_counts_where_it_computes(graph, monkeypatch):
    from importlib import metadata

    from sami_pipeline import code_versions

    before, installed = graph.origins(), metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "99.1+cpu" if name == "peft" else installed(name)
    )
    code_versions._version.cache_clear()
    after = graph.origins()
    code_versions._version.cache_clear()
    changed = {n: c for n in after if (c := after[n].changed_since(before[n])).code}
    assert {name for name in after if matches(name, (TRAINING,))} == set(changed)
    for change in changed.values():
        assert change.code == (f"peft {installed('peft')} to 99.1",)
