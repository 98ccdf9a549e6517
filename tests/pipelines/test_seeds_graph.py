"""The graph of several training seeds: which node makes what, and that the first seed's stays."""

import pytest

from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.session import experiments as session
from sami_pipeline.session.experiments import ParameterError
from sami_pipeline.session.provenance import _bound


@pytest.fixture
def graph(mt_bench_parameters, merged):
    """Return a function that gives the parameters and the nodes of the experiment, by name."""

    def build(**changes):
        experiment = experiments()["mt_bench"]
        parameters = experiment.parameters.model_validate(merged(mt_bench_parameters, changes))
        return parameters, {node.name: node for node in experiment.pipeline(parameters).nodes}

    return build


def signature(node):
    return node._inputs, node._outputs, str(_bound(node.func))


UNDER_TEST = ["base", "sami", "sft", "sft_sami"]


def test_what_one_seed_makes_is_made_by_the_same_nodes_with_more(graph):
    models = {"models": {"under_test": UNDER_TEST}}
    _, one = graph(**models)
    _, three = graph(**models, seeds=3)
    assert one.keys() < three.keys()
    made = [name for name in one if ".train_" in name or "answer_as" in name or "respond" in name]
    assert len(made) == 3 + 4 + 4
    for name in made:
        assert signature(one[name]) == signature(three[name]), name


def test_a_replicate_after_sft_goes_on_with_the_sft_of_its_seed(graph):
    _, nodes = graph(models={"under_test": UNDER_TEST}, seeds=3, training={"sami": {"seed": 5}})
    for name, student in (("sft_sami", "sft"), ("sft_sami_seed_6", "sft_seed_6"),
                          ("sft_sami_seed_7", "sft_seed_7"), ("sami_seed_7", "base")):  # fmt: skip
        (node,) = (node for each, node in nodes.items() if each.endswith(f".train_{name}"))
        assert f"mt_bench.{student}_checkpoint" in node.inputs
        assert f"mt_bench.{name}_checkpoint" in node.outputs
    further = {
        name.rpartition(".train_")[2]: _bound(node.func)["values"]["further"]
        for name, node in nodes.items() if ".train_" in name
    }  # fmt: skip
    assert further["sft_seed_7"] == further["sami_seed_7"] == further["sft_sami_seed_7"] == 2
    assert further["sami"] == further["sft"] == 0


def test_replicates_of_an_iterated_model_are_of_the_last_iteration(graph):
    _, nodes = graph(
        models={"under_test": ["base", "sami", "dpo"], "baseline": "base"},
        iterations={"count": 2}, seeds=2,
    )  # fmt: skip
    trained = sorted(name.rpartition(".")[2] for name in nodes if ".train_" in name)
    assert trained == ["train_dpo", "train_dpo_seed_1", "train_sami", "train_sami",
                       "train_sami_seed_1"]  # fmt: skip


def test_one_seed_names_no_seed_anywhere(graph):
    _, nodes = graph()
    assert not [name for name in nodes if "seed" in name]


def test_a_judge_is_asked_about_every_pair_of_replicates_that_is_compared(graph, principles):
    parameters, _ = graph(
        models={"under_test": ["base", "sami", "sft", "sft_sami"], "baseline": "base"},
        evaluation={"turns": 2}, seeds=3,
    )  # fmt: skip
    pairs = parameters.replicate_pairs()
    by_match = {}
    for name, other in pairs:
        key = tuple(each.partition("_seed_")[0] for each in (name, other))
        by_match[key] = by_match.get(key, 0) + 1
    assert by_match == {
        ("sami", "base"): 3, ("sft", "base"): 3, ("sft_sami", "base"): 3, ("sami", "sft"): 9,
        ("sami", "sft_sami"): 9, ("sft", "sft_sami"): 3,
    }  # fmt: skip
    assert judge_kind("pairwise").calls_an_answer(pairs, "both") == 2 * 30
    with_judge = parameters.model_copy(
        update={"judge": parameters.judge.model_validate({"kind": "pairwise", "model": "base"})}
    )
    workload = experiments()["mt_bench"].workload(with_judge, principles)
    (judge,) = (writing for writing in workload.writings if writing.stage == "judge")
    assert judge.requests == 80 * 3 * 60, "turns and constitutions: 3 answers to a question"
    answering = [writing.model for writing in workload.writings if writing.stage == "evaluation"]
    assert len(answering) == 1 + 3 * 3


def test_short_form_is_that_of_every_experiment_and_never_contradicts(mt_bench_parameters, merged):
    given = {"mt_bench": mt_bench_parameters, "seeds": 3}
    assert session._with_seeds("mt_bench", given)["seeds"] == 3
    session.check(given, {"run_name": "a"})
    own = {"mt_bench": merged(mt_bench_parameters, {"seeds": 2}), "seeds": 3}
    with pytest.raises(ParameterError, match=r"seeds: is 3, and mt_bench\.seeds is 2; give one"):
        session.check(own, {"run_name": "a"})
    for wrong in (0, -1, "three", 2.5, 101):
        with pytest.raises(ParameterError, match="seeds: "):
            session.check({**given, "seeds": wrong}, {"run_name": "a"})


def test_a_source_cannot_have_the_name_of_a_replicate(graph):
    with pytest.raises(ValueError, match="'sami_seed_1' has a special meaning"):
        graph(models={"sources": {"sami_seed_1": "random:0"}})
