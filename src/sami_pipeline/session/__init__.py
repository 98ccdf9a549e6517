"""Kedro's session: context, catalog, hooks, input checks, provenance and the lock."""
