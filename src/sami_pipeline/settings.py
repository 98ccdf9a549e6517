"""Kedro project settings."""

from kedro.config import OmegaConfigLoader

from sami_pipeline.hooks import GraphFollowsParameters, RunSummary

CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
HOOKS = (GraphFollowsParameters(), RunSummary())
