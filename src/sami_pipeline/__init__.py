"""SAMI Pipeline: Self-Supervised Alignment with Mutual Information as a Kedro project."""

from pathlib import Path

__version__ = "0.1.0"

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
"""Where conf/ and data/ lie; the package is installed in place."""
