"""Kedro pipelines: thin nodes that call the packages beside this one."""
