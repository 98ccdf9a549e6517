"""SAMI's training and what it writes first come as soon as the graph allows."""

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.session.experiments import experiment_parameters
from sami_pipeline.session.order import OrderedRunner, in_order

pytestmark = [
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    pytest.mark.filterwarnings("ignore:One or more dataset names contain"),
]
EXAM = ("answer_as", "attempt_as")


@pytest.fixture(autouse=True)
def _base_environment(monkeypatch):
    """Take conf/base, whatever an earlier test has activated."""
    monkeypatch.setattr("sami_pipeline.session.experiments._active_parameters", None)


def graph(name: str, **changes) -> Pipeline:
    parameters = experiment_parameters(name).model_copy(update=changes)
    return experiments()[name].pipeline(parameters)


def short(nodes) -> list[str]:
    return [node.name.rpartition(".")[2] for node in nodes]


@pytest.mark.parametrize(
    ("experiment", "begin"),
    [
        ("mt_bench", ["write_responses", "train_sft", "train_sft_sami", "respond_as_sft_sami"]),
        (
            "math",
            ["copy_solutions", "train_sami", "attempt_as_sami", "train_sft", "train_sft_sami"],
        ),
        ("align", ["write_responses", "train_sami", "respond_as_sami"]),
    ],
)
def test_sami_comes_first_and_every_node_after_what_it_reads(experiment, begin):
    pipeline = graph(experiment)
    nodes = in_order(pipeline)
    assert sorted(nodes) == sorted(pipeline.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    for node, parents in pipeline.node_dependencies.items():
        assert all(place[parent] < place[node] for parent in parents)
    works = ("write_r", "copy", "train", "respond", *EXAM)
    long = [name for name in short(nodes) if name.startswith(works)]
    assert long[: len(begin)] == begin
    assert not long[0].startswith(EXAM)


def test_with_several_seeds_the_first_one_is_shown_before_the_others_are_trained():
    names = short(in_order(graph("mt_bench", seeds=2)))
    shown = names.index("respond_as_sft_sami")
    assert names.index("train_sft_sami") < shown < names.index("train_sft_sami_seed_1")


def test_part_of_the_graph_and_a_dry_run_keep_kedros_order():
    pipeline = graph("mt_bench").filter(from_nodes=["mt_bench_eval.check_answers"])
    assert in_order(pipeline) == pipeline.nodes


def test_experiments_run_one_after_another():
    both = sum((Pipeline(graph(n), namespace=n, prefix_datasets_with_namespace=False)
                for n in ("math", "mt_bench")), Pipeline([]))  # fmt: skip
    of = [node.outputs[0].partition(".")[0] for node in in_order(both)]
    assert of == sorted(of, key=list(experiments()).index)


@pytest.mark.parametrize("missing", [False, True])
def test_the_runner_runs_in_that_order_also_when_a_run_goes_on(tmp_path, missing):
    ran = []

    def node(name, inputs, output):
        def work(*_):
            ran.append(name)
            return name

        return Node(work, inputs, output, name=name)

    pipeline = Pipeline(
        [
            node("train_sft", "responses", "sft"),
            node("answer_as_base", "base", "base_answers"),
            node("train_dpo", "sft", "dpo"),
            node("train_sft_sami", "sft", "sami"),
            node("respond_as_sft_sami", "sami", "said"),
        ]
    )
    catalog = DataCatalog(
        {name: JSONDataset(filepath=str(tmp_path / name)) for name in pipeline.datasets()}
    )
    for name in ("responses", "base", *(["sft"] if missing else [])):
        catalog.save(name, name)
    expected = ["train_sft", "train_sft_sami", "respond_as_sft_sami", "answer_as_base", "train_dpo"]
    expected = expected[1:] if missing else expected
    OrderedRunner().run(pipeline, catalog, only_missing_outputs=missing)
    assert ran == expected
    ran.clear()
    SequentialRunner().run(pipeline, catalog)
    assert ran != expected, "Kedro's own order would do"
