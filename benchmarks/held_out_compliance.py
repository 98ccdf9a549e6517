"""Compliance on development queries, which a run neither trains on nor holds out.

What the embedded default was chosen by, so that MT-Bench stays unseen:

    kedro run --pipelines mt_bench --to-outputs mt_bench.sft_sami_checkpoint --params run_name=NAME
    python benchmarks/held_out_compliance.py --run NAME --models base sft sft_sami

Whether following carries over to principles that nothing was trained on:

    python benchmarks/held_out_compliance.py --principles benchmarks/held_out_principles
"""

import argparse
from contextlib import closing
from pathlib import Path

import pandas as pd
import yaml

from sami_pipeline.engines import EngineParameters, SamplingParameters, generate, open_engine
from sami_pipeline.evaluation.intervals import DIFFERENCE, mean_interval, sign_flip_p
from sami_pipeline.evaluation.statistics import complies
from sami_pipeline.inputs.query_templates import build_training_prompts
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.principles.constitutions import sample_constitutions, tabulate_principles
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.result_tables.steerability import paired_statements
from sami_pipeline.training import responses

DATA = Path(__file__).resolve().parents[1] / "data"
# Of the queries' templates: other ones than a run's.
QUERIES_SEED = 77
SEED = 5
_STATEMENT = ["question_id", "category", "principle"]


def development_queries(queries: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    """Return queries ``first`` to ``last`` of each category, of which a run has none."""
    folder = DATA / "01_raw" / "training_prompts"
    files = {path.name: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    drawn = build_training_prompts(files, 40, QUERIES_SEED)
    drawn = drawn[~drawn["query"].isin(set(queries["query"]))]
    chosen = drawn.groupby("category").nth(slice(first, last)).reset_index(drop=True)
    return chosen.assign(query_id="dev-" + chosen["query_id"], split="held_out")


def principles_of(folder: Path) -> pd.DataFrame:
    """Return the principles of a folder's files, one YAML file a category."""
    return tabulate_principles(
        {path.name: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yml"))}
    )


def answers_of(
    models: list[str],
    folder: Path,
    queries: pd.DataFrame,
    principles: pd.DataFrame,
    template: PromptTemplate,
    max_new_tokens: int,
) -> pd.DataFrame:
    """Return each model's greedy answers under both constitutions, in the words of evaluation."""
    constitutions = sample_constitutions(
        queries, principles, n_constitutions=2, seed=SEED, contrast="opposite", use="evaluation"
    )
    sampling = SamplingParameters(max_new_tokens, stop=template.stop)
    rows, requests = responses.generation_requests(queries, constitutions, template, sampling)
    names = {"query_id": "question_id", "response": "answer"}
    written = []
    for model in models:
        with closing(open_engine(EngineParameters(), folder / model)) as engine:
            completions = generate(engine, requests, seed=SEED, description=model)
        given = responses.with_completions(rows, completions).rename(columns=names)
        written.append(given.assign(model=model, turn=1))
    return pd.concat(written, ignore_index=True)


def statements(answers: pd.DataFrame, principles: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (model, question, principle): what is followed when.

    ``desired`` and ``contrasting`` are whether the principle and, under the opposite constitution,
    its antithesis is followed; ``steerability`` is ``desired`` less whether the principle is
    followed under the opposite constitution.
    """
    key = ["model", *_STATEMENT]
    checked = check_answers(answers, principles)
    checked["follows"] = complies(checked).astype(float)
    followed = checked.pivot(index=key, columns="constitution", values="follows")
    pairs = paired_statements(answers, principles)
    gains = pairs[pairs["stance"] == "principle"].set_index(key)["gain"]
    return followed.assign(steerability=gains.astype(float)).reset_index()


def main() -> None:
    """Print compliance, degeneration and cut-off answers, and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default", help="name of the run")
    parser.add_argument("--models", nargs="+", default=["base", "sft", "sft_sami"])
    parser.add_argument("--baseline", default="sft")
    parser.add_argument(
        "--principles", type=Path, help="folder of principle files; the run's own by default"
    )
    parser.add_argument("--first", type=int, default=0, help="first query of each category")
    parser.add_argument("--last", type=int, default=20, help="last query of each category")
    parser.add_argument("--template", default="plain_bare", help="prompt template asked in")
    parser.add_argument("--max-new-tokens", type=int, default=192)
    arguments = parser.parse_args()

    primary = DATA / "03_primary" / arguments.run / "mt_bench"
    principles = (
        pd.read_parquet(primary / "principles.parquet")
        if arguments.principles is None
        else principles_of(arguments.principles)
    )
    queries = development_queries(
        pd.read_parquet(primary / "queries.parquet"), arguments.first, arguments.last
    )
    path = DATA / "01_raw" / "prompt_templates" / f"{arguments.template}.yml"
    template = PromptTemplate.parse(yaml.safe_load(path.read_text()), arguments.template)
    folder = DATA / "06_models" / arguments.run / "mt_bench"
    answers = answers_of(
        arguments.models, folder, queries, principles, template, arguments.max_new_tokens
    )
    checked = check_answers(answers, principles)
    texts = answers.assign(cut_off=answers["finish_reason"] == "length")
    measured = [*texts.groupby("model")[["cut_off", "completion_tokens"]].mean().items()]
    shares = pd.DataFrame(
        dict(measured) | {"degenerate": checked.groupby("model")["degenerate"].mean()}
    )
    table = statements(answers, principles)
    values = ["desired", "contrasting", "steerability"]
    by_principle = table.pivot_table(values[:2], ["category", "principle"], "model")
    for shown in (shares, table.groupby("model")[values].mean(), by_principle):
        print(shown.to_string(float_format="{:.3f}".format), end="\n\n")
    paired = table.set_index(["model", *_STATEMENT])[values]
    for model in arguments.models:
        if model == arguments.baseline or arguments.baseline not in arguments.models:
            continue
        difference = (paired.loc[model] - paired.loc[arguments.baseline]).reset_index()
        for value in values:
            limits = (-2.0, 2.0) if value == "steerability" else DIFFERENCE
            interval = mean_interval(difference[value], difference["question_id"], limits=limits)
            p_value = sign_flip_p(difference[value], difference["question_id"])
            print(
                f"{model} - {arguments.baseline}, {value}: {100 * interval.estimate:+.1f} points "
                f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}], p = {p_value:.4f}, "
                f"over {interval.n} queries"
            )


if __name__ == "__main__":
    main()
