"""What a dry run counts is what the nodes plan."""

import json

import pandas as pd
import pytest

from sami_pipeline.evaluation import judges, math_attempts, mt_bench, mt_bench_answers
from sami_pipeline.evaluation.asked import Known, asked_and_judged, asked_in_training
from sami_pipeline.evaluation.workload import attempted, judged
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines.mt_bench_eval.nodes.answering import constitute_questions
from sami_pipeline.principles.constitutions import sample_constitutions, tabulate_principles
from sami_pipeline.session.experiments import experiment_parameters

CATEGORIES = ("stem", "coding")
CHAT = {"kind": "chat", "turn": "{query}\n\nRules:\n{constitution}"}


def changed(name: str, **groups) -> ExperimentParameters:
    values = experiment_parameters(name).model_dump(mode="json")
    for group, changes in groups.items():
        values[group] |= changes
    return experiment_parameters(name).__class__.model_validate(values)


def questions(turns: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (f"{category}{number}", category, turn, f"Question {number}?", "reference")
            for category in CATEGORIES
            for number in (1, 2, 3)
            for turn in range(1, turns + 1)
        ],
        columns=["question_id", "category", "turn", "question", "reference"],
    )


def planned_answers(parameters, asked: pd.DataFrame, principles, model: str) -> pd.DataFrame:
    """Plan a model's answers as its node does, without writing them."""

    def write(rows: pd.DataFrame, description: str) -> pd.DataFrame:
        return rows.assign(
            prompt="", answer="-", finish_reason="stop", prompt_tokens=1, completion_tokens=1
        )

    return mt_bench.answer_questions(
        model,
        mt_bench.asked_questions(asked, parameters.evaluation),
        constitute_questions(asked, principles, parameters.evaluation),
        write,
        without_constitution=parameters.evaluation.without_constitution,
    )


def with_other_words_in_evaluation(principles: pd.DataFrame) -> pd.DataFrame:
    wordings = [json.loads(text) for text in principles["wordings"]]
    for wording in wordings:
        wording["principle"]["evaluation"] = ["Do it in other words."]
    return principles.assign(wordings=[json.dumps(wording) for wording in wordings])


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize(
    ("kind", "orders"),
    [("pairwise", "both"), ("constitution", "random"), ("single", "both"), ("single", "random")],
)
@pytest.mark.parametrize(
    "evaluation",
    [
        {},
        {"without_constitution": True, "turns": 1},
        {"contrasting": False},
        {"trained_wording": True},
    ],
)
def test_answers_and_judgements_are_counted_as_they_are_planned(
    turns, kind, orders, evaluation, principles
):
    repeats = 3 if orders == "random" else 1
    judge = {"kind": kind, "model": "base", "orders": orders}
    judge |= {"repeats": repeats, "temperature": 0.5}
    parameters = changed("mt_bench", evaluation=evaluation, judge=judge)
    principles = with_other_words_in_evaluation(principles)
    asked = questions(turns)
    count = asked["question_id"].nunique()
    workload = judged(
        parameters, principles, train={"stem": 8}, held_out={}, questions=count, turns=turns
    )
    models = parameters.models.under_test
    answers = [planned_answers(parameters, asked, principles, model) for model in models]
    counted = {(w.stage, w.model): w.requests for w in workload.writings}
    asks_once = parameters.evaluation.turns == 1
    assert {w.turns for w in workload.writings} == {1 if asks_once else turns}
    for model, table in zip(models, answers, strict=True):
        assert counted["evaluation", model] == len(table)
    calls = judges.plan_judgements(
        kind,
        pd.concat(answers, ignore_index=True),
        asked,
        constitute_questions(asked, principles, parameters.evaluation),
        prompts_for(kind),
        parameters.models.pairs(),
        constrained=False,
        orders=orders,
        repeats=repeats,
    )
    assert counted["judge", "base"] == len(calls)


def test_nothing_is_written_for_a_file_of_answers(principles):
    models = experiment_parameters("mt_bench").models.model_dump(mode="json")
    sources = models["sources"] | {"gpt": "answers:gpt.jsonl"}
    models = {"sources": sources, "under_test": ["base", "gpt"], "baseline": "base"}
    parameters = changed("mt_bench", models=models)
    queries = {"train": {"stem": 8}, "held_out": {"stem": 2}}
    workload = judged(parameters, principles, **queries, questions=1, turns=2)
    assert {writing.model for writing in workload.writings} == {"base"}
    for field, fault in (("teacher", "teacher: 'gpt' is a file"), ("student", "student: 'gpt' is")):
        with pytest.raises(ValueError, match=fault):
            changed("mt_bench", models={"sources": sources, field: "gpt"})
    with pytest.raises(ValueError, match=r"judge\.model: 'gpt' is a file of answers"):
        judge = {"kind": "pairwise", "model": "gpt"}
        changed("mt_bench", models={"sources": sources}, judge=judge)


def prompts_for(kind: str) -> pd.DataFrame:
    from sami_pipeline import PROJECT_FOLDER

    raw = PROJECT_FOLDER / "data" / "01_raw"
    published = [json.loads(line) for line in (raw / "mt_bench" / "judge_prompts.jsonl").open("r")]
    import yaml

    own = [yaml.safe_load(path.read_text()) for path in (raw / "judge_prompts").glob("*.yml")]
    return pd.DataFrame([*published, *own])[["name", "system_prompt", "prompt_template"]]


def principles_of(**counts: int) -> pd.DataFrame:
    """Return so many principles of each category, the first of which is called p0."""
    return tabulate_principles(
        {
            category: {
                "category": category,
                "principles": [
                    {"id": f"p{i}", "principle": f"Do {i}.", "antithesis": f"Do not do {i}."}
                    for i in range(count)
                ],
            }
            for category, count in counts.items()
        }
    )


@pytest.mark.parametrize(
    ("contrast", "differ_in", "expected"),
    [
        ("opposite", None, 6),
        ("pairs", None, 2 * (1 + 2 * 5)),  # one principle has one pair, two have six
        ("pairs", "p0", 2 * (1 + 2 * 4)),
    ],
)
def test_held_out_answers_are_counted_as_they_are_planned(contrast, differ_in, expected):
    changes = {"contrast": contrast, "pairs_per_query": 5, "pairs_differ_in": differ_in}
    parameters = changed("mt_bench", constitutions=changes)
    principles = principles_of(stem=1, coding=2)
    queries = pd.DataFrame({"query_id": ["a", "b", "c"], "category": ["stem", "coding", "coding"]})
    drawn = sample_constitutions(
        queries,
        principles,
        n_constitutions=2,
        seed=0,
        contrast=contrast,
        pairs_per_query=parameters.constitutions.pairs_per_query,
        pairs_differ_in=differ_in,
    )
    rows = drawn.assign(split="held_out", training_prompt=json.dumps({"text": "x"}), query="q")
    template = PromptTemplate.model_validate(CHAT)
    _, requests = mt_bench_answers.held_out_requests(rows, template, parameters.generation)
    held_out = {"stem": 1, "coding": 2}
    workload = judged(
        parameters, principles, train={"coding": 8}, held_out=held_out, questions=1, turns=2
    )
    counted = [w.requests for w in workload.writings if w.stage == "held-out queries"]
    assert counted == [len(requests)] * len(parameters.models.under_test)
    assert workload.held_out == len(drawn) == expected
    assert workload.train == 8 * (drawn["query_id"] == "b").sum()


def test_attempts_are_counted_as_they_are_planned(math_principles):
    parameters = changed("math", problems={"test": 3}, accuracy={"attempts": 4})
    problems = pd.DataFrame(
        [("test", f"p{i}", f"{i} + 1?", "2", "#### 2", "t") for i in range(3)],
        columns=["split", "problem_id", "question", "answer", "solution", "template"],
    )
    _, requests = math_attempts.attempt_requests(
        problems, math_principles, PromptTemplate.model_validate(CHAT), parameters.accuracy
    )
    assert {w.requests for w in attempted(parameters, math_principles).writings} == {len(requests)}


@pytest.fixture
def math_principles() -> pd.DataFrame:
    import yaml

    from sami_pipeline import PROJECT_FOLDER

    path = PROJECT_FOLDER / "data" / "01_raw" / "math_principles" / "worked" / "math.yml"
    return tabulate_principles({"math.yml": yaml.safe_load(path.read_text())}, ("math",))


def test_models_are_asked_in_the_words_of_training_and_of_evaluation(principles):
    """What is held against contexts before a run is what models will be asked."""
    parameters = changed("mt_bench")
    other = with_other_words_in_evaluation(principles)
    template = PromptTemplate(kind="plain", turn="{constitution}\n{query}", answer_end="\n\n")
    tables = {
        "principles": other,
        "questions": questions(1),
        "queries": questions(1).rename(columns={"question": "query"}),
    }
    names = ("generation_prompt", "training_prompt", "evaluation_prompt")
    known = Known(dict.fromkeys(names, template), tables.get, makes=lambda name: True)
    before, after = asked_in_training(parameters, known), asked_and_judged(parameters, known)
    texts = {asked.role: [prompt.text for prompt in asked.prompts] for asked in (*before, *after)}
    assert texts.keys() == {"models.teacher", "models.student", "models.under_test"}
    for role, prompts in texts.items():
        assert prompts
        in_others = ["Do it in other words." in text for text in prompts]
        assert all(in_others) if role == "models.under_test" else not any(in_others)
