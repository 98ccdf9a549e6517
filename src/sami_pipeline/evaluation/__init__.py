"""Evaluation: the MT-Bench protocol, judges, checks, and statistics. Never imports kedro."""
