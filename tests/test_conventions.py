"""What holds for the whole project, whatever its pipelines are."""

import ast
import inspect
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
from fsspec.implementations.local import LocalFileSystem
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.partitions import PartitionedDataset
from kedro_viz.data_access import DataAccessManager
from kedro_viz.models.flowchart.node_metadata import TaskNodeMetadata
from kedro_viz.models.flowchart.nodes import GraphNode

from sami_pipeline import schemas
from sami_pipeline.datasets import CheckpointDataset, WorkingFolder
from sami_pipeline.engines.registry import engine_kinds
from sami_pipeline.evaluation.judge_kinds import KINDS
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.parameters import (
    CHECKLIST,
    ExperimentParameters,
    ModelJudgeParameters,
    PrincipleWritingParameters,
)
from sami_pipeline.pipeline_registry import register_pipelines
from sami_pipeline.pipelines import compare_runs, folded, write_principles
from sami_pipeline.principles.checks import check_names
from sami_pipeline.principles.checks.base import Check
from sami_pipeline.result_tables.registry import RESULT_TABLES
from sami_pipeline.settings import CONFIG_LOADER_ARGS
from sami_pipeline.training.baselines.registry import trained_models

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src" / "sami_pipeline"
ENVIRONMENTS = ("base", "test", "paper")
EXPERIMENTS = experiments()
JUDGED = "mt_bench"  # the experiment with all nodes that a judge besides the checklist adds
# Kedro 1.7 registers its resolvers through a name that OmegaConf has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:register_new_resolver"),
    pytest.mark.filterwarnings("ignore:One or more dataset names contain"),
]
LAYERS = [
    "raw",
    "intermediate",
    "primary",
    "feature",
    "model_input",
    "models",
    "model_output",
    "reporting",
]
RESULT_TABLE = "sami_pipeline.result_tables.{table}.Contract"
HEAVY = ("torch", "transformers", "vllm", "trl", "openai")


class Environment:
    """The configuration of one environment, with the graphs and the catalog that it gives."""

    def __init__(self, name: str) -> None:
        loader = OmegaConfigLoader(str(PROJECT / "conf"), env=name, **CONFIG_LOADER_ARGS)
        self.run_name = loader["globals"]["run_name"]
        self.parameters = loader["parameters"]
        self.entries = loader["catalog"]
        self.catalog = DataCatalog.from_config(self.entries)
        for name, experiment in EXPERIMENTS.items():
            files = experiment.raw_files(
                experiment.parameters.model_validate(self.parameters[name])
            )
            for dataset, file in files.items():
                self.catalog[f"{name}.{dataset}"] = file
        for experiment, groups in self.parameters.items():
            self.catalog[f"params:{experiment}"] = groups
            if not isinstance(groups, dict):
                continue  # of every run, such as share_between_runs
            for group, value in groups.items():
                self.catalog[f"params:{experiment}.{group}"] = value
        self.pipelines: list[tuple[str, Pipeline]] = [
            (
                name,
                experiment.pipeline(experiment.parameters.model_validate(self.parameters[name])),
            )
            for name, experiment in EXPERIMENTS.items()
        ]
        self.pipelines += [self.judged_by_a_model(), self.written_by_a_model()]
        self.pipelines += [self.with_several_seeds(name) for name in EXPERIMENTS]
        self.written = set().union(*(pipeline.all_outputs() for _, pipeline in self.pipelines))

    def judged_by_a_model(self) -> tuple[str, Pipeline]:
        """Return the experiment with all nodes that a judge, and further questions, add."""
        values = self.parameters[JUDGED]
        judge = {"kind": "single", "model": values["models"]["student"]}
        experiment = EXPERIMENTS[JUDGED]
        asked = values["evaluation"] | {"contrasting": True, "trained_wording": True}
        changes = {"judge": judge, "evaluation": asked}
        parameters = experiment.parameters.model_validate(values | changes)
        return JUDGED, experiment.pipeline(parameters)

    def with_several_seeds(self, name: str) -> tuple[str, Pipeline]:
        """Return an experiment with the nodes and tables that further training seeds add."""
        experiment = EXPERIMENTS[name]
        parameters = experiment.parameters.model_validate(self.parameters[name] | {"seeds": 2})
        return name, experiment.pipeline(parameters)

    def written_by_a_model(self) -> tuple[str, Pipeline]:
        name = write_principles.NAME
        parameters = PrincipleWritingParameters.model_validate(self.parameters[name])
        return name, write_principles.create_pipeline(parameters)

    def datasets(self) -> Iterator[tuple[str, str]]:
        """Yield (experiment, dataset) for every dataset that is no parameter."""
        for experiment, pipeline in self.pipelines:
            for name in sorted(pipeline.datasets()):
                if not name.startswith(("params:", "parameters")):
                    yield experiment, name


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def environment(request) -> Environment:
    return Environment(request.param)


def test_every_experiment_is_looked_at_here():
    others = {"__init__", "record", "registry"}
    modules = {path.stem for path in (SOURCE / "experiments").glob("*.py")} - others
    assert modules == set(EXPERIMENTS)


def test_every_dataset_resolves_in_the_catalog_and_none_is_left_to_memory(environment):
    names = [name for _, name in environment.datasets()]
    assert len(names) > 30
    for name in names:
        dataset = environment.catalog.get(name)
        assert dataset is not None, name
        assert not isinstance(dataset, MemoryDataset), name


def test_every_file_that_a_run_writes_is_written_whole(environment):
    for name in environment.written:
        dataset = environment.catalog.get(name)
        # The one sees to it itself; the other is several files, made again if a save was cut short.
        if not isinstance(dataset, CheckpointDataset | PartitionedDataset):
            assert type(dataset._fs) is LocalFileSystem, name


def test_every_parameter_that_a_node_asks_for_is_configured(environment):
    for experiment, pipeline in environment.pipelines:
        asked = {name for name in pipeline.inputs() if name.startswith("params:")}
        assert asked
        known = {f"params:{experiment}.{group}" for group in environment.parameters[experiment]}
        known.add(f"params:{experiment}")
        assert asked <= known


def test_datasets_are_under_their_experiment_and_nodes_under_the_pipeline_they_fold_into(
    environment,
):
    for experiment, name in environment.datasets():
        assert re.fullmatch(rf"{experiment}\.(iteration_\d+\.)?[a-z][a-z0-9_]*", name), name
    packages = {path.parent.name for path in (SOURCE / "pipelines").glob("*/pipeline.py")}
    for _, pipeline in environment.pipelines:
        for node in pipeline.nodes:
            assert re.fullmatch(r"[a-z_]+\.[a-z][a-z0-9_]*", _of_iteration(node.name)), node.name
            assert _of_iteration(node.namespace) in packages, node.name


def _of_iteration(name: str) -> str:
    return re.sub(r"^iteration_\d+\.", "", name)


def test_every_dataset_is_in_a_layer_and_layers_run_from_raw_to_reporting(environment):
    """Kedro-viz drops all layers where a dataset comes before one of an earlier layer."""
    whole = environment.pipelines[: len(EXPERIMENTS)]
    both = sum((folded(pipeline, name) for name, pipeline in whole), Pipeline([]))
    comparing = compare_runs.create_pipeline({})
    for name, pipeline in [*environment.pipelines, ("all", both), ("compare_runs", comparing)]:
        graph = DataAccessManager()
        graph.add_catalog(environment.catalog, {name: pipeline})
        graph.add_pipelines({name: pipeline})
        graph.create_modular_pipelines_tree_for_registered_pipeline(name)
        datasets = [
            node for node in graph.get_nodes_for_registered_pipeline(name) if node.type == "data"
        ]
        assert len(datasets) > 2
        for node in datasets:
            working_folder = isinstance(node.kedro_obj, WorkingFolder)
            assert (node.layer is None) == working_folder, node.name
        drawn = graph.get_sorted_layers_for_registered_pipeline(name)
        if any("iteration_1." in node.name for node in pipeline.nodes):
            continue  # data passes the layers again, and none are drawn
        assert drawn == [layer for layer in LAYERS if layer in {node.layer for node in datasets}]


def test_all_experiments_fold_into_themselves():
    registered = register_pipelines()
    whole = {node.name for node in registered["__default__"].nodes}
    parts = {f"{name}.{node.name}" for name in EXPERIMENTS for node in registered[name].nodes}
    assert whole == parts


def test_every_parquet_that_a_run_writes_has_a_validator(environment):
    """Tables from outside may have any columns; what is made of them has a contract."""
    tables = 0
    for name in environment.written:
        if isinstance(environment.catalog.get(name), ParquetDataset):
            tables += 1
            assert name in environment.catalog.validator_specs, name
    assert tables > 15


def test_validators_are_strict_contracts_that_say_what_one_row_is(environment):
    paths = {entry["validator"] for entry in environment.entries.values() if "validator" in entry}
    assert RESULT_TABLE in paths
    paths |= {RESULT_TABLE.format(table=table.name) for table in RESULT_TABLES}
    for path in paths - {RESULT_TABLE}:
        module, name = path.rsplit(".", 1)
        assert module == schemas.__name__ or name == "Contract"
        contract = getattr(import_module(module), name)
        assert "One row is" in inspect.getdoc(contract), name
        assert contract.to_schema().strict, name


def test_only_listed_tables_of_results_take_the_entry_that_any_name_matches(environment):
    taken = {
        name.partition(".")[2]
        for name in environment.written - set(environment.entries)
        if environment.catalog.config_resolver.match_dataset_pattern(name) == "{experiment}.{table}"
    }
    assert taken == {table.name for table in RESULT_TABLES}


def test_every_path_that_a_run_writes_holds_its_name(environment):
    for name in environment.written:
        dataset = environment.catalog.get(name)
        named = (getattr(dataset, name, None) for name in ("_filepath", "_folder", "_path"))
        place = Path(next(filter(None, named)))
        layer, run = place.relative_to(PROJECT if place.is_absolute() else "").parts[1:3]
        assert re.fullmatch(r"0[2-8]_\w+", layer), place
        assert run == environment.run_name, place


def test_every_node_has_a_docstring_and_type_hints(environment):
    for _, pipeline in environment.pipelines:
        for node in pipeline.nodes:
            signature = inspect.signature(node.func)
            assert signature.return_annotation is not inspect.Signature.empty, node.name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, node.name
            assert inspect.getdoc(node.func), f"{node.name}: {node.func.__name__} has no docstring"
            get_type_hints(node.func)  # else Kedro warns at every run that it can't read them


def test_kedro_viz_shows_the_code_of_a_node_whose_model_the_graph_decides(environment):
    _, pipeline = environment.pipelines[0]
    for name in ("answer_as", "train", "import"):
        node = next(node for node in pipeline.nodes if f".{name}_" in node.name)
        shown = TaskNodeMetadata(task_node=GraphNode.create_task_node(node, "node", set())).code
        assert shown == inspect.getsource(node.func.__wrapped__), node.name
        assert "*inputs" not in shown, node.name


def imported_modules(path: Path) -> set[str]:
    """Return the full names of everything that a file imports, anywhere in it."""
    package = ("sami_pipeline", *path.parent.relative_to(SOURCE).parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("core", ("kedro", "kedro_datasets", "sami_pipeline.engines", "sami_pipeline.pipelines")),
        ("engines", ("kedro", "kedro_datasets", "sami_pipeline.core", "sami_pipeline.pipelines")),
        ("evaluation", ("kedro", "kedro_datasets", "sami_pipeline.pipelines")),
    ],
)
def test_package_never_imports(package, forbidden):
    files = sorted((SOURCE / package).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        for module in imported_modules(path):
            for other in forbidden:
                assert module != other and not module.startswith(f"{other}."), path


def test_only_experiments_and_the_registry_import_pipelines():
    above = {"pipelines", "experiments", "pipeline_registry.py"}
    for path in sorted(SOURCE.rglob("*.py")):
        if not above & set(path.parts):
            below = [m for m in imported_modules(path) if m.startswith("sami_pipeline.pipelines")]
            assert below == [], path


def test_no_module_imports_itself_through_others():
    """Imports inside functions count too: a circle is a room that can't be understood alone."""
    files = {
        ".".join(("sami_pipeline", *path.relative_to(SOURCE).with_suffix("").parts)): path
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "__init__.py"
    }
    arrows = {
        name: (imported_modules(path) & files.keys()) - {name} for name, path in files.items()
    }
    assert sum(map(len, arrows.values())) > 100
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def subclasses(kind: type) -> Iterator[type]:
    """Yield every class below one."""
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def registered_names() -> set[str]:
    """Return the names of everything that is in a registry and can be chosen by a parameter."""
    return {
        *EXPERIMENTS,
        *trained_models(),
        *(kind.name for kind in KINDS),
        CHECKLIST,
        *engine_kinds(),
    }


def told_apart(path: Path, names: set[str], classes: set[str]) -> Iterator[str]:
    """Yield where a file tells registered things apart by their names or classes.

    Args:
        path: of the file.
        names: of what is registered.
        classes: of their parameters.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            read = {ast.unparse(side).rpartition(".")[2] for side in sides}
            texts = {each.value for side in sides for each in ast.walk(side)
                     if isinstance(each, ast.Constant)}  # fmt: skip
            told = {"kind", "name", "experiment", "model", "replicate"}
            if read & told and texts & names:
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Dict):
            keys = {ast.unparse(key) for key in node.keys if key is not None}
            if keys and keys <= {repr(name) for name in EXPERIMENTS.keys() - {"math"}}:
                yield f"{path.name}:{node.lineno}: a dict of experiments"
            own = "baselines" in path.parts  # a baseline knows whose settings decide its result
            if not own and len(keys & {repr(name) for name in trained_models()}) > 1:
                yield f"{path.name}:{node.lineno}: a dict of trained models"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = re.findall(r"\w+", ast.unparse(node.args[1]))
            if classes.intersection(asked):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_what_is_registered_is_never_told_apart_by_its_name_or_its_class():
    """What is added from outside would be taken for something else, or forgotten."""
    groups = [*subclasses(ExperimentParameters), *subclasses(ModelJudgeParameters)]
    classes = {each.__name__ for each in [*groups, *subclasses(Check)]}
    assert classes >= {"MathParameters", "JudgedParameters", "JudgeParameters", "Words"}
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        # A class of checks has several names, which it tells apart itself.
        checks = () if "checks" in path.parts else check_names()
        found += told_apart(path, {*registered_names(), *checks}, classes)
    assert found == []


def test_telling_apart_is_seen(tmp_path):
    path = tmp_path / "code.py"
    for line in (
        'x = engine.kind == "vllm"',
        'x = judge.kind in ("single", "checklist")',
        "x = isinstance(parameters, JudgedParameters)",
        'x = {"mt_bench": 3}',
        'x = "sami" in finding.model',
        'x = {"base": 6, "sami": 0, "sft_sami": 3}',
    ):
        path.write_text(f"{line}\n", "utf-8")
        assert len(list(told_apart(path, registered_names(), {"JudgedParameters"}))) == 1, line


def test_the_annotated_tree_names_every_folder_and_no_other():
    tree = (PROJECT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where things are")[2]
    lines = re.findall(r"^ {4}( *)(\w[\w./]*/)", tree, re.MULTILINE)
    named = {f"{SOURCE.relative_to(PROJECT)}/{name}" if gap else name for gap, name in lines}
    assert len(named) == len(lines) > 20
    for name in named:
        if "_…" not in name:
            assert (PROJECT / name).is_dir(), name
    packages = {f"{path.parent.relative_to(PROJECT)}/" for path in SOURCE.glob("*/__init__.py")}
    assert packages <= named


def test_nothing_is_pickled():
    for path in sorted(SOURCE.rglob("*.py")):
        assert not {"pickle", "joblib", "dill", "cloudpickle"} & imported_modules(path), path
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text("utf-8")):
            assert "weights_only=True" in call, path


def test_registry_loads_no_model_library():
    code = (
        "import sys; from sami_pipeline.pipeline_registry import register_pipelines;"
        f"register_pipelines(); print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert finished.stdout.splitlines()[-1] == "[]"


def test_kedro_viz_shows_the_graph_of_its_environment_and_parameters():
    """It leaves hooks out."""
    code = (
        "from pathlib import Path; from kedro_viz.integrations.kedro.data_loader import load_data;"
        "parameters = {'mt_bench': {'models': {'under_test': ['base', 'sami', 'sft']}}};"
        f"_, pipelines, _ = load_data(Path({str(PROJECT)!r}), 'paper',"
        " package_name='sami_pipeline', extra_params=parameters);"
        "print(*(node.name for node in pipelines['mt_bench'].nodes))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    nodes = finished.stdout.splitlines()[-1].split()
    assert {"data_ingest.import_teacher", "baseline_training.train_sft"} <= set(nodes)
    assert "baseline_training.train_dpo" not in nodes


def test_registry_is_listed_in_under_five_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(
        [sys.executable, "-m", "kedro", "registry", "list"],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"DO_NOT_TRACK": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert set(EXPERIMENTS) <= set(re.findall(r"\w+", finished.stdout))
    assert write_principles.NAME in finished.stdout
    assert "__default__" in finished.stdout
    # Processor time, which a busy machine stretches less than time on the clock.
    spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert spent < 5


def test_files_that_start_first_are_there(request):
    longest = request.config.pluginmanager.get_plugin(str(PROJECT / "tests" / "conftest.py"))
    files = [PROJECT / "tests" / name for name in longest.LONGEST]
    assert len(set(files)) == len(files) > 0
    assert [path for path in files if not path.is_file()] == []
