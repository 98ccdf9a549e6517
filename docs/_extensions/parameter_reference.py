"""Writes the reference of all parameters into configuration.md, from the parameter models.

``make docs`` puts the tables where the line stands: ``<!-- parameter reference -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from sami_pipeline.parameters import HousekeepingParameters
from sami_pipeline.session import experiments

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "configuration"
PLACE = "<!-- parameter reference -->"
TOP_LEVEL = "top level"  # in conf/*/parameters/run.yml


@dataclass(frozen=True)
class Parameter:
    """One row of the reference; ``type``, ``default`` and ``description`` are Markdown."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Group:
    """A parameter group: its full name in conf/, what it is about, and its parameters."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]


def groups() -> list[Group]:
    """Return all parameter groups; one that is shared is there once."""
    places: dict[str, str] = {}
    found = []
    for name, model in {**experiments.groups(), TOP_LEVEL: HousekeepingParameters}.items():
        schema = TypeAdapter(model).json_schema()
        found += _groups(name, schema, schema.get("$defs", {}), places)
    return found


def to_markdown(reference: list[Group]) -> str:
    """Return one heading and one table for each group."""
    parts = []
    for group in reference:
        rows = [
            f"| `{p.name}` | {p.type} | {p.default} | {p.description} |" for p in group.parameters
        ]
        head = ["| name | type | default | description |", "|---|---|---|---|"]
        parts += [f"## `{group.name}`", group.description, "\n".join([*head, *rows])]
    return "\n\n".join(parts)


def _groups(
    name: str, schema: dict[str, Any], definitions: dict[str, Any], places: dict[str, str]
) -> Iterator[Group]:
    described = _attributes(schema.get("description", ""))
    parameters, inner = [], []
    for key, field in schema["properties"].items():
        definition = _definition(field)
        nested = None if definition is None else definitions[definition]
        if nested is None or not nested.get("properties"):
            parameters.append(
                Parameter(
                    key,
                    _type(field, definitions),
                    f"`{json.dumps(field['default'])}`" if "default" in field else "required",
                    _cell(field.get("description") or described.get(key, "")),
                )
            )
            continue
        many = "items" in field
        below = f"{name}.{key}{_placeholder(field)}"
        place = places.setdefault(definition, below)
        if place == below:
            inner.append((below, nested))
        optional = "anyOf" in field
        default = "required" if key in schema.get("required", ()) else "its own"
        default = "`[]`" if many else "`null`" if optional else default
        parameters.append(
            Parameter(
                key,
                ("list of " if many else "")
                + f"[group](#{_anchor(place)})"
                + (" or `null`" if optional else ""),
                default,
                _cell(field.get("description") or _summary(nested.get("description", ""))),
            )
        )
    yield Group(name, _body(schema), tuple(parameters))
    for below, nested in inner:
        yield from _groups(below, nested, definitions, places)


def _placeholder(field: dict[str, Any]) -> str:
    """Return what stands for the keys of a mapping of groups, or nothing for a single group."""
    if "patternProperties" in field:
        return ".<name>"
    return ".<category>" if "propertyNames" in field else ""


def _definition(field: dict[str, Any]) -> str | None:
    """Return the definition that a field holds, alone, or null, or one for each key or item."""
    candidates = [field, *field.get("anyOf", [])]
    candidates += [field.get("additionalProperties"), field.get("items")]
    candidates += field.get("patternProperties", {}).values()
    for candidate in candidates:
        if isinstance(candidate, dict) and "$ref" in candidate:
            return candidate["$ref"].rsplit("/", 1)[-1]
    return None


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{_words(name)}](#{_words(name).replace(' ', '-')}s)"
    if "anyOf" in field:
        return " or ".join(_type(option, definitions) for option in field["anyOf"])
    if "enum" in field:
        *others, last = (f"`{value}`" for value in field["enum"])
        return f"{', '.join(others)} or {last}"
    if "const" in field:
        return f"`{field['const']}`"
    match field["type"]:
        case "null":
            return "`null`"
        case "array":
            if "prefixItems" in field:
                return f"list of {len(field['prefixItems'])}"
            return f"list of {_type(field['items'], definitions)}"
        case "object":
            values = next(iter(field.get("patternProperties", {}).values()), None)
            values = values or field.get("additionalProperties")
            return "mapping" + (f" to {_type(values, definitions)}" if values is not True else "")
        case kind:
            limits = (
                (sign, field[limit])
                for limit, sign in (
                    ("minimum", "≥"), ("exclusiveMinimum", "&gt;"),
                    ("maximum", "≤"), ("exclusiveMaximum", "&lt;"),
                )
                if limit in field
            )  # fmt: skip
            return f"{kind} {', '.join(f'{sign} {limit}' for sign, limit in limits)}".rstrip()


def _words(name: str) -> str:
    """Return "model source" for "ModelSource"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()


def _anchor(name: str) -> str:
    """Return what MyST and plain git hosts make of a heading."""
    return re.sub(r"[^\w-]", "", name.lower())


def _summary(docstring: str) -> str:
    return docstring.split("\n\n")[0]


def _body(schema: dict[str, Any]) -> str:
    """Return a docstring without its section of attributes."""
    return re.split(r"\n\n?Attributes:\n", schema.get("description", ""))[0]


def _attributes(docstring: str) -> dict[str, str]:
    """Return the descriptions of a Google-style section of attributes."""
    _, _, section = docstring.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"^[a-z](?=[a-z ]+\b)", _upper, text) for name, text in found}


def _upper(match: re.Match[str]) -> str:
    return match[0].upper()


def _cell(text: str) -> str:
    """Return a description as the cell of a table: one line, with nothing cut by a bar."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _insert(app: Sphinx, name: str, source: list[str]) -> None:
    if name == PAGE:
        source[0] = source[0].replace(PLACE, to_markdown(groups()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx; the page is read again in every build."""
    app.connect("source-read", _insert)
    app.connect("env-get-outdated", lambda *_: [PAGE])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
