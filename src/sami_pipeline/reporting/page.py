"""One HTML file of an experiment: everything is inside it, and nothing that a model wrote can run.

Three things keep model text from running: the template escapes what it prints, the answers are JSON
in a script element that is no script, of which the page only ever sets ``textContent``, and the
page's content security policy allows exactly two scripts by their hash and no network at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sami_pipeline.figures import model_colours
from sami_pipeline.figures import outcome as draw_outcome
from sami_pipeline.reporting import contents, headlines
from sami_pipeline.reporting.outcome import outcome
from sami_pipeline.reporting.run import (
    RunDescription,
    data,
    duration,
    flattened,
    gibibytes,
    in_words,
    judges,
    moment,
    tokens,
)

# Their figures give each model its colour.
_WITH_MODELS = ("win_rates", "compliance", "accuracy")
# What a new reader has to know: a word, its meaning, the table without which it does not occur.
_WORDS = (
    ("principle, opposite", "what an answer is asked to do, such as to begin with “Dear”, and "
     "another thing that is asked for instead of it; both stand in a name such as “dear or once”",
     "compliance"),
    ("constitution", "the principles that an answer is asked to follow: desired asks for the "
     "principles, contrasting for their opposites", "compliance"),
    ("steerability", "how often a statement is followed where it is asked for, less how often "
     "where its opposite is: 0 for a model that does not heed what it is asked", "steerability"),
    ("parity", "where neither model is better: 50 % of comparisons, or a difference of 0", ""),
    ("points", "percentage points: from 48 % to 60 % it is +12 points", ""),
    ("95 % interval", "a range made so that it holds the true value in 95 of 100 experiments with "
     "other questions of the same kind", ""),
    ("p", "how likely a difference of this size or more is where there is none, corrected for the "
     "number of comparisons", ""),
    ("no difference seen", "these questions do not show one; there may be one all the same", ""),
)  # fmt: skip
TEMPLATE_FOLDER = Path(__file__).parent / "template"


def write_page(
    description: RunDescription,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    answers: Mapping[str, Any],
) -> str:
    """Return the report as one HTML page that needs no network.

    Args:
        description: what was run.
        tables: by name; those of ``contents.CONTENTS`` are shown, an empty one as such.
        figures: by name; likewise.
        answers: what the models wrote, as from ``answers``.
    """
    differences, drawn = headlines.forest_rows(tables), description.drawn
    colours = _colours(tables, drawn)
    return rendered(
        "report.html",
        figure_scripts(),
        run=description,
        outcome=outcome(tables),
        cards=headlines.cards(tables),
        limits=headlines.before_you_believe(tables),
        in_words=in_words(description),
        words_used=[
            (word, meaning) for word, meaning, table in _WORDS if not table or table in tables
        ],
        forest=None if differences.empty else embedded(bare(draw_outcome(differences, drawn))),
        colours=colours,
        csv_of=csv_address,
        sections=contents.SECTIONS,
        contents=[
            part for part in contents.CONTENTS if part.name in tables or part.name in figures
        ],
        tables=tables,
        overviews=contents.overviews,
        whole=contents.whole,
        figures={name: embedded(bare(figure)) for name, figure in figures.items()},
        answers=answers,
        answers_data=embedded({**answers, "colours": colours}),
        judges=judges(tables),
        data=data(description.subject, tables),
        tokens=tokens(description, tables),
        flattened=flattened,
    )


def rendered(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Return a page made from a template, all that it prints escaped.

    Args:
        template: its file.
        scripts: what may run, and nothing else.
        values: what the template prints.
    """
    templates = Templates(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"duration": duration, "moment": moment, "gibibytes": gibibytes}
    return templates.get_template(template).render(
        style=Markup((TEMPLATE_FOLDER / "report.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
        **values,
    )


def figure_scripts() -> list[str]:
    """Return the scripts of a page with figures: Plotly's and ours."""
    return [get_plotlyjs(), (TEMPLATE_FOLDER / "report.js").read_text("utf-8")]


def csv_address(table: pd.DataFrame) -> str:
    """Return a table as an address that a page can offer to save, without a network."""
    text = table.to_csv(index=False, lineterminator="\n")
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def _colours(tables: Mapping[str, pd.DataFrame], drawn: Sequence[str]) -> dict[str, str]:
    """Return the colour of each model, the one that it has in the figures."""
    columns = [
        table[name].astype(str)
        for table in (tables[name] for name in _WITH_MODELS if name in tables)
        for name in ("model", "opponent")
        if name in table
    ]
    return model_colours(*columns, models=drawn)


def bare(figure: go.Figure) -> dict[str, Any]:
    """Return a figure without its title, which the page writes, and colours, which it chooses."""
    bare = json.loads(figure.to_json())
    bare["layout"].pop("title", None)
    bare["layout"].pop("template", None)
    return bare


def embedded(data: Any) -> Markup:
    """Return data as JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: only these scripts run, and nothing is fetched."""
    if not scripts:
        return "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    # Plotly writes its own style sheet, and pictures of a figure that is saved.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
