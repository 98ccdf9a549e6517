import dataclasses
from datetime import UTC, datetime

import pandas as pd
import pytest

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.parameters import MtBenchParameters
from sami_pipeline.reporting import RunDescription, describe_models
from sami_pipeline.reporting.record import Attempt, NodeRecord, environment
from sami_pipeline.reporting.run import data, duration, flattened, in_words, tokens
from sami_pipeline.session.experiments import experiment_parameters

SERVER = {"base_url": "https://example.org/v1", "model": "large"}
PRICES = {"prompt_price": 2.0, "completion_price": 10.0}


def experiment(judge: dict, **groups) -> MtBenchParameters:
    base = experiment_parameters("mt_bench").model_dump(mode="json")
    base["models"]["sources"] = {"base": "random:0"}
    for name, values in {"judge": judge, **groups}.items():
        base[name] |= values
    return MtBenchParameters.model_validate(base)


def described(parameters: MtBenchParameters, records=()) -> RunDescription:
    return RunDescription(
        experiment="mt_bench",
        subject=experiments()["mt_bench"].subject,
        run="a run",
        parameters=parameters.model_dump(mode="json"),
        models=describe_models(parameters, {}),
        nodes=["a.one", "a.two", "a.three"],
        records=records,
    )


@pytest.mark.parametrize(
    ("prices", "cost"), [(PRICES, 2 * (1000 * 2 + 300 * 10) / 1e6), ({}, None)]
)
def test_judgements_of_a_server_cost_their_tokens_times_its_prices(prices, cost):
    engine = {"kind": "openai", "openai": SERVER | prices}
    second = {"kind": "single", "model": "base"}
    description = described(experiment({"kind": "pairwise", "engine": engine, "second": second}))
    judgements = pd.DataFrame(
        {"judge_model": ["large"] * 2, "prompt_tokens": [1000] * 2, "completion_tokens": [300] * 2}
    ).assign(judge="pairwise")
    answers = judgements.rename(columns={"judge_model": "model"}).drop(columns="judge")
    local = judgements.assign(judge="second_single", judge_model="base")
    both = {"judgements": pd.concat([judgements, local])}
    rows = {row["purpose"]: row for row in tokens(description, both)}
    assert rows["Judgements of the second judge"]["cost"] is None, "that one runs here"
    assert rows["Judgements"]["served"]
    assert rows["Judgements"]["cost"] == cost
    (row,) = tokens(description, {"answers": answers})
    assert (row["served"], row["cost"]) == (False, None), "models under test run here"


def test_report_says_where_test_problems_are_from_and_when_that_is_a_training_split(math_tables):
    subject = experiments()["math"].subject
    said = dict(data(subject, math_tables))
    assert said["Test problems by source"] == "3 (sums-test 3)"
    problems = math_tables["problems"]
    tested = problems.assign(problem_id=[f"gsm8k-train-{n}" for n in range(3)])
    said = dict(data(subject, math_tables | {"problems": tested}))
    assert said["Test problems by source"] == (
        "3 (gsm8k-train 3), which models may have been trained on"
    )


def test_published_answers_are_explained_by_their_source_where_no_model_was_made():
    of_a_run = described(experiment({}))
    made = dict(in_words(of_a_run))
    assert made["base"] == "not trained here"
    assert "starts from sft" in made["sft_sami"]
    assert "the baseline" in made[of_a_run.parameters["models"]["baseline"]]
    published = dataclasses.replace(
        of_a_run,
        parameters={"answers": {"sft": "sft.json"}},
        models=[{"name": "sft", "role": "baseline", "source": "published answers, sft.json"}],
    )
    assert in_words(published) == [("sft", "published answers, sft.json")]


def test_responses_count_for_the_teacher_of_their_iteration():
    description = described(experiment({}, iterations={"count": 3}))
    table = pd.DataFrame({"prompt_tokens": [5], "completion_tokens": [7]})
    names = ("iteration_1.generations", "iteration_2.generations", "generations")
    rows = tokens(description, dict.fromkeys(names, table))
    assert [(row["purpose"], row["model"]) for row in rows] == [
        ("Training responses, iteration 1", "base"),
        ("Training responses, iteration 2", "sami_iteration_1"),
        ("Training responses", "sami_iteration_2"),
    ]


def test_a_hosted_teacher_and_a_judge_at_a_server_are_named_with_their_place():
    engine = {"kind": "openai", "openai": SERVER}
    models = {"sources": {"base": "random:0"}, "teacher": "hosted", "student": "base"}
    parameters = experiment(
        {"kind": "single", "engine": engine},
        models=models, generation={"engine": engine},
    )  # fmt: skip
    found = {model["name"]: model for model in describe_models(parameters, {})}
    place = "large at https://example.org/v1"
    assert (found["hosted"]["role"], found["hosted"]["source"]) == ("teacher", place)
    assert (found["large"]["role"], found["large"]["source"]) == ("judge", place)
    assert found["base"]["source"] == "random:0"


def test_records_are_grouped_by_what_nodes_ran_on_and_by_run():
    here = environment()
    other = here.model_copy(update={"git_revision": "another"})

    def record(node: str, *attempts: tuple) -> NodeRecord:
        return NodeRecord(
            node=node,
            attempts=[
                Attempt(
                    run=run, started=datetime(2026, 1, day, tzinfo=UTC), seconds=seconds,
                    outcome="finished" if seconds else "unfinished", environment=on,
                    command={"env": run},
                )
                for run, day, seconds, on in attempts
            ],
        )  # fmt: skip

    description = described(
        experiment({}),
        [
            record("a.one", ("first", 1, 10.0, here)),
            record("a.two", ("first", 2, None, here), ("second", 3, 5.0, other)),
        ],
    )
    assert [(on.git_revision, [one.node for one in records])
            for on, records in description.environments] == [
        (here.git_revision, ["a.one"]), ("another", ["a.two"]),
    ]  # fmt: skip
    assert [(command, count) for _, command, count in description.commands] == [
        ("env = first", 2), ("env = second", 1),
    ]  # fmt: skip
    assert description.seconds == 15.0
    assert description.without_record == ["a.three"]


def test_seeds_are_found_wherever_they_stand():
    seeds = described(experiment({})).seeds
    assert {"training.sami.seed", "evaluation.seed", "queries.seed"} <= set(seeds)


def test_nested_values_are_flattened_and_durations_readable():
    assert flattened({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
    assert [duration(s) for s in (0.04, 59.96, 61, 3599.6, 7260)] == [
        "0.0 s", "60.0 s", "1 min 1 s", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip
