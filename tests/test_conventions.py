"""What holds for the whole project, whatever its pipelines are."""

import ast
import inspect
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline

import sami_pipeline.pipelines as pipelines_package
from sami_pipeline import schemas
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import mt_bench
from sami_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src" / "sami_pipeline"
ENVIRONMENTS = ("base", "test", "paper")
EXPERIMENTS = {mt_bench.NAME: mt_bench.create_pipeline}
HEAVY = ("torch", "transformers", "vllm", "trl", "openai")


class Environment:
    """The configuration of one environment with the graphs and the catalog that it gives."""

    def __init__(self, name: str) -> None:
        loader = OmegaConfigLoader(str(PROJECT / "conf"), env=name, **CONFIG_LOADER_ARGS)
        self.entries = loader["catalog"]
        self.catalog = DataCatalog.from_config(self.entries)
        self.parameters = loader["parameters"]
        self.pipelines: dict[str, Pipeline] = {
            experiment: create(ExperimentParameters.model_validate(self.parameters[experiment]))
            for experiment, create in EXPERIMENTS.items()
        }

    def datasets(self) -> Iterator[tuple[str, str]]:
        """Return (experiment, dataset) for every dataset that is no parameter."""
        for experiment, pipeline in self.pipelines.items():
            for name in sorted(pipeline.datasets()):
                if not name.startswith(("params:", "parameters")):
                    yield experiment, name


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def environment(request, tmp_path_factory) -> Environment:
    return Environment(request.param)


def test_every_experiment_of_the_registry_is_looked_at_here():
    modules = {path.stem for path in SOURCE.joinpath("pipelines").glob("*.py")} - {"__init__"}
    assert modules == set(EXPERIMENTS)


def test_every_dataset_resolves_in_the_catalog_and_none_is_left_to_memory(environment):
    names = list(environment.datasets())
    assert len(names) > 30
    for _, name in names:
        dataset = environment.catalog.get(name)
        assert dataset is not None, name
        assert not isinstance(dataset, MemoryDataset), name


def test_every_parameter_of_a_node_is_in_the_configuration(environment):
    for experiment, pipeline in environment.pipelines.items():
        asked = {name for name in pipeline.inputs() if name.startswith("params:")}
        groups = {f"params:{experiment}.{group}" for group in environment.parameters[experiment]}
        assert asked <= groups


def test_datasets_and_nodes_are_snake_case_under_their_experiments_namespace(environment):
    for experiment, name in environment.datasets():
        assert re.fullmatch(rf"{experiment}\.[a-z][a-z0-9_]*", name), name
    for experiment, pipeline in environment.pipelines.items():
        for node in pipeline.nodes:
            folded = rf"{experiment}\.[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*"
            assert re.fullmatch(folded, node.name), node.name


def test_every_parquet_that_a_run_writes_has_a_validator_of_its_own(environment):
    """Tables from outside have any columns; what is made of them has a contract."""
    written = set().union(*(pipeline.all_outputs() for pipeline in environment.pipelines.values()))
    specifications = environment.catalog.validator_specs
    tables = 0
    for _, name in environment.datasets():
        environment.catalog.get(name)
        if name in written and "Parquet" in environment.catalog.get_type(name):
            tables += 1
            assert name in specifications, name
    assert tables > 15


def test_validators_are_contracts_that_say_what_one_row_is(environment):
    paths = {entry["validator"] for entry in environment.entries.values() if "validator" in entry}
    assert paths
    for path in paths:
        module, name = path.rsplit(".", 1)
        assert module == schemas.__name__
        contract = getattr(schemas, name)
        assert "One row is" in inspect.getdoc(contract), name
        assert contract.to_schema().strict, name


def test_paths_that_a_run_writes_hold_its_name(environment):
    written = set().union(*(pipeline.all_outputs() for pipeline in environment.pipelines.values()))
    for _, name in environment.datasets():
        dataset = environment.catalog.get(name)
        place = str(getattr(dataset, "_filepath", None) or getattr(dataset, "_folder", ""))
        if name in written:
            run_name = {"base": "default"}
            assert re.search(rf"data/0[2-8]_\w+/{run_name.get(_name(environment), _name(environment))}/", place)


def test_every_node_has_a_docstring_and_type_hints(environment):
    for pipeline in environment.pipelines.values():
        for node in pipeline.nodes:
            assert inspect.getdoc(node.func), f"{node.name}: no docstring"
            signature = inspect.signature(node.func)
            assert signature.return_annotation is not inspect.Signature.empty, node.name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (
                    f"{node.name}: {parameter.name}"
                )
