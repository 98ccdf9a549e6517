"""What an experiment asks of models is known from its record, whatever its parameters are."""

from dataclasses import replace

import pytest
from kedro.config import OmegaConfigLoader

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.asked import Asked, Known
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.session import model_needs
from sami_pipeline.settings import CONFIG_LOADER_ARGS

NOTHING = Known({}, table=lambda name: None, makes=lambda name: True)


@pytest.fixture
def poems(random_checkpoint):
    """An experiment with parameters like no other's, and one model from a folder."""
    loader = OmegaConfigLoader(str(PROJECT_FOLDER / "conf"), env="test", **CONFIG_LOADER_ARGS)
    values = loader["parameters"]["math"]
    shared = {name: values[name] for name in ExperimentParameters.model_fields if name in values}
    folder = {"base": f"folder:{random_checkpoint.folder}"}
    models = values["models"] | {
        "sources": values["models"]["sources"] | folder,
        "teacher": "base",
    }
    parameters = ExperimentParameters.model_validate(shared | {"models": models})
    return replace(experiments()["math"], name="poems", parameters=ExperimentParameters), parameters


def test_a_model_that_an_experiment_from_outside_asks_too_much_is_refused(poems):
    experiment, parameters = poems

    def asked(parameters, known):
        for room in (1, 10**6):
            yield Asked(
                parameters.models.student, "poets", None, [Prompt(text="A poem.")], room, "lines"
            )

    with pytest.raises(InputError, match=r"poems\.poets: base: its context of .* lower lines"):
        model_needs.check(replace(experiment, asked=asked), parameters, NOTHING, PROJECT_FOLDER)


def test_one_that_asks_nothing_is_not(poems):
    experiment, parameters = poems
    quiet = replace(experiment, asked=lambda parameters, known: iter(()))
    model_needs.check(quiet, parameters, NOTHING, PROJECT_FOLDER)
