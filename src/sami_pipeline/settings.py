"""Kedro project settings."""

import warnings

from kedro.config import OmegaConfigLoader

from sami_pipeline.session import configuration
from sami_pipeline.session.catalog import RunCatalog
from sami_pipeline.session.context import ExperimentContext
from sami_pipeline.session.hooks import (
    CredentialsHook,
    EngineReleaseHook,
    ErrorMessageHook,
    InputCheckHook,
    MlflowHook,
    NodeRecordHook,
    ProgressHook,
    RunLockHook,
    RunSummaryHook,
)
from sami_pipeline.session.session import ExperimentSession

# Kedro 1.7 registers its resolvers through a name that OmegaConf has deprecated.
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
# Datasets carry their experiment's name, nodes that of the shared pipeline they fold into.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")
# What libraries will change is told to those who change their versions, by the tests.
for module in ("transformers", "torch", "peft", "accelerate"):
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=rf"{module}\b")

SESSION_CLASS = ExperimentSession
CONTEXT_CLASS = ExperimentContext
DATA_CATALOG_CLASS = RunCatalog
CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = configuration.CONFIG_LOADER_ARGS
_PROGRESS = ProgressHook()
HOOKS = (
    CredentialsHook(),
    NodeRecordHook(_PROGRESS.work_of),
    RunSummaryHook(),
    _PROGRESS,
    ErrorMessageHook(),
    EngineReleaseHook(),
    MlflowHook(),
    RunLockHook(),
    InputCheckHook(),  # the last one here is asked first
)
