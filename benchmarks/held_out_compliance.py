"""Compliance on training queries that a run neither trained on nor held out.

What the embedded default was tuned on, so that MT-Bench stays unseen:

    kedro run --pipelines mt_bench --to-outputs mt_bench.sami_checkpoint --params run_name=NAME,…
    python benchmarks/held_out_compliance.py --run NAME
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml

from sami_pipeline.engines import EngineParameters, SamplingParameters, generate, open_engine
from sami_pipeline.evaluation import statistics
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.principles.constitutions import sample_constitutions
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.training import responses

DATA = Path(__file__).resolve().parents[1] / "data"
SEED = 5


def main() -> None:
    """Print compliance and degeneration of base and sami, and their paired difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default", help="name of the run")
    parser.add_argument("--contrast", default="opposite", choices=("opposite", "sampled"))
    parser.add_argument("--per-category", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    arguments = parser.parse_args()

    primary = DATA / "03_primary" / arguments.run / "mt_bench"
    queries = pd.read_parquet(primary / "queries.parquet")
    principles = pd.read_parquet(primary / "principles.parquet")
    used = pd.read_parquet(
        DATA / "05_model_input" / arguments.run / "mt_bench" / "responses.parquet"
    )
    unused = queries[~queries["query_id"].isin(used["query_id"])]
    chosen = unused.groupby("category").head(arguments.per_category).assign(split="held_out")
    constitutions = sample_constitutions(
        chosen, principles, n_constitutions=2, seed=SEED, contrast=arguments.contrast
    )
    template = PromptTemplate.parse(
        yaml.safe_load((DATA / "01_raw" / "prompt_templates" / "chat.yml").read_text()), "chat"
    )
    sampling = SamplingParameters(arguments.max_new_tokens, stop=template.stop)
    rows, requests = responses.generation_requests(chosen, constitutions, template, sampling)
    answers = []
    for model in ("base", "sami"):
        folder = DATA / "06_models" / arguments.run / "mt_bench" / model
        engine = open_engine(EngineParameters(), folder)
        written = responses.with_completions(
            rows, generate(engine, requests, seed=SEED, description=model)
        )
        names = {"query_id": "question_id", "response": "answer"}
        answers.append(written.rename(columns=names).assign(model=model, turn=1))
    checked = check_answers(pd.concat(answers, ignore_index=True), principles)
    checked["complies"] = statistics.complies(checked)
    shares = checked.groupby("model")[["complies", "degenerate"]].mean()
    by_principle = checked.pivot_table(
        "complies", ["category", "principle", "stance"], "model", aggfunc="mean"
    )
    difference = statistics.compliance_difference(checked, "base", seed=SEED)
    for table in (by_principle, difference.set_index("category"), shares):
        print(table.to_string(float_format="{:.3f}".format), end="\n\n")


if __name__ == "__main__":
    main()
