"""Tables of two small experiments, made by the functions that make them in a run."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from examples import HOSTILE, MODELS, QUESTIONS

from sami_pipeline import figures
from sami_pipeline.evaluation import judge_quality, length_control, statistics
from sami_pipeline.evaluation import math_accuracy as math_statistics
from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.evaluation.math_answers import (
    flexible_answer,
    harness_answer,
    harness_flexible_answer,
    published_answer,
    same_number,
    strict_answer,
)
from sami_pipeline.evaluation.math_readings import read_answer
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.principles.constitutions import sample_constitutions, tabulate_principles
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.reporting import RunDescription, describe_models, write_page
from sami_pipeline.result_tables import controls, steerability
from sami_pipeline.session.experiments import experiment_parameters

OPTIONS = {"resamples": 50, "seed": 0}


@pytest.fixture(scope="session")
def mt_bench_tables(principle_files: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Four questions of four categories; ``base`` answers all with ``HOSTILE``."""
    principles = tabulate_principles(principle_files)
    questions = pd.DataFrame(
        [
            (question, category, turn, f"Question {question}, turn {turn}?", "")
            for question, category in QUESTIONS.items()
            for turn in (1, 2)
        ],
        columns=["question_id", "category", "turn", "question", "reference"],
    )
    first = questions[questions["turn"] == 1].rename(columns={"question_id": "query_id"})
    constitutions = sample_constitutions(
        first, principles, n_constitutions=2, seed=0, contrast="opposite", use="evaluation"
    )
    texts = {
        "base": HOSTILE,
        "sami": "1. First this.\n2. Then that, as well and as fully as it can be said.\n" * 3,
        "dpo": "Dear reader,\n\nwould you like more?",
    }
    asked = constitutions.set_index(["query_id", "constitution"])["stances"]
    answers = pd.DataFrame(
        [
            (
                model, question, category, turn, constitution, asked[question, constitution],
                "{}", texts[model], "stop", 20, 10 + len(model), False,
            )
            for model in MODELS
            for question, category in QUESTIONS.items()
            for turn, constitution in ((1, "desired"), (1, "contrasting"), (2, "desired"))
        ],
        columns=[
            "model", "question_id", "category", "turn", "constitution", "stances", "prompt",
            "answer", "finish_reason", "prompt_tokens", "completion_tokens", "degenerate",
        ],
    )  # fmt: skip
    checked = check_answers(answers, principles)
    pairs = [("sami", "base"), ("dpo", "base"), ("sami", "dpo")]
    verdicts = pd.concat([judge_checklist(checked, *pair) for pair in pairs], ignore_index=True)
    judgements = pd.DataFrame(
        [
            (
                "pairwise", "judge-model", "sami", "base", "81", "writing", 1, "desired", order, 0,
                "Which is better?", f"{HOSTILE} said in order {order} [[A]]", "model", 30, 5,
                "stop",
            )
            for order in ("model_first", "opponent_first")
        ],
        columns=[
            "judge", "judge_model", "model", "opponent", "question_id", "category", "turn",
            "constitution", "order", "sample", "prompt", "text", "verdict", "prompt_tokens",
            "completion_tokens", "finish_reason",
        ],
    )  # fmt: skip
    one = verdicts[(verdicts["model"] == "sami") & (verdicts["opponent"] == "base")]
    verdicts = pd.concat(
        [verdicts, one.assign(judge="pairwise", winner="model", model_score=float("nan"))],
        ignore_index=True,
    )
    return {
        "questions": questions,
        "question_constitutions": constitutions,
        "principles": principles,
        "answers": answers,
        "checked": checked,
        "verdicts": verdicts,
        "judgements": judgements,
        "win_rates": statistics.win_rates(verdicts),
        "length_controlled": length_control.length_controlled(verdicts, answers, **OPTIONS),
        "judge_quality": judge_quality.judge_quality(verdicts, answers),
        "compliance": statistics.compliance(checked, "base"),
        "compliance_difference": statistics.compliance_difference(checked, "base"),
        "steerability": steerability.steerability(answers, principles, "base"),
        "controls": controls.controls(answers, questions, principles, "base"),
        "degeneration": statistics.degeneration(answers),
    }


@pytest.fixture(scope="session")
def math_tables() -> dict[str, pd.DataFrame]:
    """Three problems with a greedy and two sampled attempts; sft alone solves the first."""
    problems = pd.DataFrame(
        [
            ("test", f"sums-test-{n}", f"What is {n} + 1?", str(n + 1), f"#### {n + 1}", "")
            for n in (1, 2, 3)
        ],
        columns=["split", "problem_id", "question", "answer", "solution", "template"],
    )
    rows = []
    for model in ("base", "sft"):
        for problem in problems.itertuples():
            for attempt in range(3):
                right = model == "sft" and problem.problem_id == "sums-test-1"
                text = f"#### {problem.answer}" if right else f"{HOSTILE} it is {attempt}7."
                answer, reading = read_answer(text)
                rows.append(
                    (
                        model, problem.problem_id, attempt, text, answer, reading,
                        strict_answer(text) or "", flexible_answer(text) or "",
                        published_answer(text) or "",
                        harness_answer(text) or "", harness_flexible_answer(text) or "",
                        same_number(answer, problem.answer), problem.answer, "length", 12, 8,
                    )
                )  # fmt: skip
    attempts = pd.DataFrame(
        rows,
        columns=[
            "model", "problem_id", "attempt", "text", "answer", "reading", "strict", "flexible",
            "published", "harness_strict", "harness_flexible", "correct",
            "reference", "finish_reason", "prompt_tokens", "completion_tokens",
        ],
    )  # fmt: skip
    options = {"extraction": "answer"}
    return {
        "problems": problems,
        "attempts": attempts,
        "accuracy": math_statistics.accuracy(attempts, **options),
        "accuracy_breakdown": math_statistics.accuracy_breakdown(attempts),
        "accuracy_difference": math_statistics.accuracy_difference(attempts, "base", **options),
    }


@pytest.fixture(scope="session")
def page_of() -> Callable[..., str]:
    """Return a function that writes the page of an experiment's tables, with their figures."""
    drawn = {
        "figure_win_rates": ("win_rates", figures.win_rates),
        "figure_compliance": ("compliance", figures.compliance),
        "figure_questions": ("verdicts", figures.paired_questions),
        "figure_lengths": ("degeneration", figures.lengths),
        "figure_accuracy": ("accuracy", figures.accuracy),
        "figure_attempts": ("accuracy", figures.accuracy_by_attempts),
    }

    def write(experiment: str, tables: dict[str, pd.DataFrame]) -> str:
        parameters = experiment_parameters(experiment)
        subject = experiments()[experiment].subject
        description = RunDescription(
            experiment=experiment,
            subject=subject,
            run="a run",
            parameters=parameters.model_dump(mode="json"),
            models=describe_models(parameters, {}),
            nodes=[f"{experiment}.some.node"],
            records=[],
        )
        shown = {
            name: draw(tables[table])
            for name, (table, draw) in drawn.items()
            if table in tables and not tables[table].empty
        }
        return write_page(description, tables, shown, subject.browser(tables, "base", None))

    return write
