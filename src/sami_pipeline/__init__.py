"""SAMI Pipeline: Self-Supervised Alignment with Mutual Information as a Kedro project."""

__version__ = "0.1.0"
