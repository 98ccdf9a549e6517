"""Inputs: queries, math problems and raw files, checked where they are read."""
