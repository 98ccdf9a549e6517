"""Principles: contrasting constitutions, checks of statements, and writing new ones."""
