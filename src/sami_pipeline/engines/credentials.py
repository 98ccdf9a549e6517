"""Keys of endpoints, in this process's memory only: never in a parameter, a log or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from sami_pipeline.errors import InputError

_keys: dict[str, SecretStr] = {}


def hand_over(credentials: Mapping[str, Any]) -> None:
    """Take the keys out of credentials such as ``{"openai": {"api_key": …}}``.

    Groups without ``api_key`` are left alone, and keys that were handed over before are forgotten.
    """
    _keys.clear()
    for group, values in credentials.items():
        if isinstance(values, Mapping) and values.get("api_key"):
            _keys[group] = SecretStr(str(values["api_key"]))


def api_key(group: str, variable: str) -> str | None:
    """Return the key of a group of the credentials, else that in an environment variable.

    None if there is neither, as for a server that wants no key.

    Raises:
        InputError: the key can't be sent; the message does not hold it.
    """
    if group in _keys:
        key, place = _keys[group].get_secret_value(), f"credentials: {group}.api_key"
    else:
        key, place = os.environ.get(variable, ""), f"environment variable {variable}"
    key = key.strip()
    # A library that meets such a character later would quote the whole key.
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{place}: holds characters that no key has; copy the key again")
    return key or None
