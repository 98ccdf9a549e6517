"""Registers what modules outside of the project define, and runs an experiment in a Kedro session.

    python run_from_outside.py PROJECT CONF RUN FOLDER

FOLDER holds haiku.py, sft_part.py and echo_engine.py, the examples of the docs.
"""

import sys
from pathlib import Path

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

project, conf, run, folder = sys.argv[1:]
sys.path.insert(0, folder)
bootstrap_project(Path(project))

import echo_engine  # noqa: E402
import haiku  # noqa: E402 (after the folder is known)
import sft_part  # noqa: E402

from sami_pipeline.engines import registry as engines  # noqa: E402
from sami_pipeline.experiments import registry as experiments  # noqa: E402
from sami_pipeline.training.baselines import registry as baselines  # noqa: E402

experiments.register(haiku.EXPERIMENT)
baselines.register(sft_part.SFT_PART)
engines.register(echo_engine.ECHO)
parameters = {
    "run_name": run,
    "haiku": {
        "models": {"under_test": ["base", "sami", "sft_part"]},
        "evaluation": {"engine": {"kind": "echo", "echo": {"words": 3}}},
    },
}
with KedroSession.create(
    Path(project), conf_source=conf, env="test", runtime_params=parameters
) as session:
    session.run(pipeline_names=["haiku"])
