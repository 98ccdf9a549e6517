"""SAMI Pipeline: Self-Supervised Alignment with Mutual Information as a Kedro project."""

import os
from pathlib import Path

from sami_pipeline import process_settings

process_settings.apply()
# No library reports to its publisher what is done with it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_SOURCES = Path(__file__).resolve().parents[2]
PROJECT_FOLDER = _SOURCES if (_SOURCES / "pyproject.toml").is_file() else Path.cwd()
"""Where conf/ and data/ lie: the project itself, or for an installed wheel the current folder."""
