"""Math problems: generated and GSM8K's own; solutions by stance; how attempts are read."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.engines import Completion
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import math_attempts
from sami_pipeline.evaluation.math_answers import (
    flexible_answer,
    harness_answer,
    harness_flexible_answer,
    same_number,
    strict_answer,
)
from sami_pipeline.inputs import problems
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import AccuracyParameters, ProblemsParameters
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.schemas import Attempts, Problems, Queries

BOTH = {"gsm_symbolic": 1, "chain_sum": 2}


@pytest.fixture(scope="module")
def generated() -> pd.DataFrame:
    parameters = ProblemsParameters(families=BOTH, train=60, test=31)
    return problems.generate_problems(parameters)


def test_generated_problems_fill_both_splits_by_the_families_shares(generated):
    Problems.validate(generated)
    family = generated["problem_id"].str.split("-").str[0]
    counts = generated.groupby(["split", family]).size()
    assert counts["train"].to_dict() == {"chain_sum": 40, "gsm_symbolic": 20}
    assert counts["test"].to_dict() == {"chain_sum": 20, "gsm_symbolic": 11}


def test_no_question_is_trained_and_tested_on(generated):
    assert generated["question"].is_unique


def test_every_worked_solution_ends_in_the_problems_own_answer(generated):
    for row in generated.itertuples():
        assert same_number(strict_answer(row.solution), row.answer), row.problem_id


def test_the_same_seed_gives_the_same_problems_and_another_others(generated):
    again = problems.generate_problems(ProblemsParameters(families=BOTH, train=60, test=31))
    pd.testing.assert_frame_equal(again, generated)
    other = problems.generate_problems(ProblemsParameters(families=BOTH, train=60, test=31, seed=1))
    assert set(other["question"]) != set(generated["question"])


def test_templates_are_kept_apart_when_they_are_not_to_be_shared(generated):
    apart = problems.generate_problems(
        ProblemsParameters(families={"gsm_symbolic": 1}, train=40, test=40, shared_templates=False)
    )
    templates = apart.groupby("split")["template"].agg(set)
    assert not templates["train"] & templates["test"]
    symbolic = generated[generated["template"] != ""].groupby("split")["template"].agg(set)
    assert symbolic["train"] & symbolic["test"], "else this test shows nothing"


def test_a_family_that_repeats_itself_says_how_many_it_gave(monkeypatch):
    first = next(problems._family("chain_sum", "train/0", 1))
    monkeypatch.setattr(problems, "_family", lambda *arguments: iter([first] * 100))
    parameters = ProblemsParameters(families={"chain_sum": 1}, train=2, test=1)
    with pytest.raises(InputError, match=r"chain_sum gave only 1 .* for train; ask for fewer"):
        problems.generate_problems(parameters)


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("4 + 3", ["4 + 3 = 7"]),
        ("4 + 3 - 12", ["4 + 3 = 7", "7 - 12 = -5"]),
        ("1 - 9 + 20", ["1 - 9 = -8", "-8 + 20 = 12"]),
    ],
)
def test_sums_are_worked_out_from_left_to_right(expression, lines):
    assert problems.partial_sums(expression).splitlines() == lines


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_gsm8k_is_read_from_its_own_format_and_from_parquet(suffix, tmp_path):
    table = pd.DataFrame(
        {"question": ["Q1", "Q2", "Q3"],
         "answer": ["2+2=<<2+2=4>>4\n#### 4", "x\n#### 1,000", "y\n#### -3"]}
    )  # fmt: skip
    for split in ("train", "test"):
        named = table.assign(question=table["question"] + split)
        path = tmp_path / f"{split}.{suffix}"
        if suffix == "jsonl":
            named.to_json(path, orient="records", lines=True)
        else:
            named.to_parquet(path)
    source = f"gsm8k:{tmp_path}/{{split}}.{suffix}"
    read = problems.load_problems(ProblemsParameters(source=source, train=2, test=None), tmp_path)
    Problems.validate(read)
    assert read.groupby("split").size().to_dict() == {"train": 2, "test": 3}
    test = read[read["split"] == "test"]
    assert test["answer"].tolist() == ["4", "1000", "-3"]
    assert test["problem_id"].tolist() == ["gsm8k-test-0", "gsm8k-test-1", "gsm8k-test-2"]


def test_a_question_that_stands_twice_is_told_with_both_lines_and_never_tested_and_trained_on(
    tmp_path, caplog
):
    for split, questions in {"train": ["A", "B", "C", "B", "D"], "test": ["D", "E"]}.items():
        rows = [{"question": text, "answer": "#### 1"} for text in questions]
        pd.DataFrame(rows).to_json(tmp_path / f"{split}.jsonl", orient="records", lines=True)
    source = f"gsm8k:{tmp_path}/{{split}}.jsonl"
    caplog.set_level("INFO")
    read = problems.load_problems(ProblemsParameters(source=source, train=5, test=None), tmp_path)
    (told,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert told.getMessage() == (
        f"{tmp_path}/train.jsonl: lines that repeat an earlier question: 1 of 5, such as line 4, "
        "which asks what line 2 asks"
    )
    assert read["question"].tolist() == ["A", "B", "C", "D", "E"]
    assert read["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert "2 training problems are left out: repeated, or in the test split" in caplog.text


class TestOtherTrainingProblems:
    """arXiv 2410.01704 trains on MATH and tests on GSM8K's train split."""

    def files(self, folder) -> dict[str, str]:
        math = [
            {"problem": "Find x.", "solution": r"So $x = \boxed{18}$.", "level": "Level 1"},
            {"problem": "Prove it.", "solution": "It is so.", "level": "Level 5"},
            {"problem": "Q1", "solution": r"\boxed{4}", "level": "Level 2"},
        ]
        pd.DataFrame(math).to_json(folder / "math.jsonl", orient="records", lines=True)
        for split, first in (("train", 0), ("test", 10)):
            rows = [{"question": f"Q{first + n}", "answer": f"#### {n}"} for n in range(3)]
            pd.DataFrame(rows).to_json(folder / f"{split}.jsonl", orient="records", lines=True)
        source = f"gsm8k:{folder}/{{split}}.jsonl"
        return {"source": source, "training_source": f"math:{folder}/math.jsonl"}

    @pytest.mark.parametrize(
        ("split", "questions"), [("test", "Q10 Q11 Q12"), ("train", "Q0 Q1 Q2")]
    )
    def test_they_are_trained_on_and_either_split_is_tested_on(self, tmp_path, split, questions):
        parameters = ProblemsParameters(
            **self.files(tmp_path), train=3, test=None, test_split=split
        )
        read = problems.load_problems(parameters, tmp_path)
        Problems.validate(read)
        tested = read[read["split"] == "test"]
        assert tested["question"].tolist() == questions.split()
        assert tested["problem_id"].str.startswith(f"gsm8k-{split}-").all()
        trained = read[read["split"] == "train"].set_index("question")["answer"].to_dict()
        expected = {"Find x.": "18", "Prove it.": "", "Q1": "4"}
        if split == "train":
            del expected["Q1"]  # it is tested on
        assert trained == expected
        assert set(problems.queries_of(read)["query"]) == set(expected)

    def test_testing_on_what_is_trained_on_is_refused(self, tmp_path):
        source = self.files(tmp_path)["source"]
        with pytest.raises(ValueError, match="test_split: train would test on what is trained on"):
            ProblemsParameters(source=source, test_split="train")

    def test_a_table_without_solutions_names_the_column(self, tmp_path):
        settings = self.files(tmp_path)
        (tmp_path / "math.jsonl").write_text('{"problem": "Find x."}')
        with pytest.raises(InputError, match=r"math.jsonl: the column solution is missing"):
            problems.load_problems(ProblemsParameters(**settings, train=1, test=1), tmp_path)


def test_an_unreadable_source_names_the_path_and_the_parameter(tmp_path):
    parameters = ProblemsParameters(source=f"gsm8k:{tmp_path}/{{split}}.jsonl")
    with pytest.raises(InputError, match=r"math.problems.source: .*train.jsonl: can't be read"):
        problems.load_problems(parameters, tmp_path)


def test_a_table_without_answers_names_the_column(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "Q"}) + "\n")
    parameters = ProblemsParameters(source=f"gsm8k:{tmp_path}/{{split}}.jsonl", train=1)
    with pytest.raises(InputError, match=r"train.jsonl: the column answer is missing"):
        problems.load_problems(parameters, tmp_path)


def test_only_training_problems_become_queries(generated):
    queries = problems.queries_of(generated)
    Queries.validate(queries)
    assert len(queries) == 60
    assert set(queries["category"]) == {"math"}
    assert set(queries["source"]) == {"gsm_symbolic", "chain_sum"}


@pytest.mark.parametrize(
    ("stances", "text"),
    [
        ([("shows_steps", "principle"), ("final_line", "principle")], "2 + 2 = 4\n#### 4"),
        ([("final_line", "antithesis"), ("shows_steps", "principle")],
         "2 + 2 = 4\nThe answer is 4."),
        ([("shows_steps", "antithesis"), ("final_line", "principle")], "#### 4"),
        ([("shows_steps", "antithesis"), ("final_line", "antithesis")], "The answer is 4."),
    ],
)  # fmt: skip
def test_a_worked_solution_takes_the_stances_of_its_constitution(stances, text):
    assert problems.solution_by_stances("2 + 2 = 4\n#### 4", "4", stances) == text


def test_a_stance_that_a_worked_solution_cannot_take_is_refused():
    with pytest.raises(InputError, match="worked_solutions can't take a stance on states_units"):
        problems.solution_by_stances("1\n#### 1", "1", [("states_units", "principle")])


def test_wrong_solutions_are_left_out_of_training_and_only_there():
    responses = pd.DataFrame(
        [
            ("a", "train", "desired", "so 4", "usable"),
            ("a", "train", "contrasting", "5", "usable"),
            ("b", "train", "desired", "so 5", "usable"),
            ("b", "train", "contrasting", "4", "usable"),
            ("c", "held_out", "desired", "so 7", "usable"),
            ("d", "train", "desired", "so 4", "truncated"),
        ],
        columns=["query_id", "split", "constitution", "response", "status"],
    )
    known = pd.DataFrame({"problem_id": list("abcd"), "answer": ["4"] * 4})
    kept = problems.rightly_solved(responses, known)
    assert kept["query_id"].tolist() == ["a", "a", "c", "d"]
    with pytest.raises(InputError, match="no training solution has a right answer"):
        problems.rightly_solved(responses[responses["query_id"].isin(["b", "d"])], known)


TEMPLATE = PromptTemplate.parse({"kind": "plain", "turn": "{query} / {constitution}:"}, "a")
PRINCIPLES = tabulate_principles(
    {
        "math.yml": {
            "category": "math",
            "principles": [
                {
                    "id": "shows_steps",
                    "principle": "Show all of your steps.",
                    "antithesis": "None.",
                    "evaluation": {"principle": "Show steps."},
                }
            ],
        }
    }
)


def test_each_test_problem_is_asked_once_greedily_and_n_times_sampled(generated):
    parameters = AccuracyParameters(attempts=3, temperature=0.5)
    rows, requests = math_attempts.attempt_requests(generated, PRINCIPLES, TEMPLATE, parameters)
    assert len(rows) == len(requests) == 31 * 4
    first = requests[:4]
    assert [request.sampling.temperature for request in first] == [0.0, 0.5, 0.5, 0.5]
    assert len({request.prompt for request in first}) == 1
    question = generated.loc[generated["split"] == "test", "question"].iloc[0]
    assert first[0].prompt.text == f"{question} / Show steps.:"
    bare = AccuracyParameters(attempts=3, temperature=0.5, under_constitution=False)
    _, requests = math_attempts.attempt_requests(generated, PRINCIPLES, TEMPLATE, bare)
    assert requests[0].prompt.text == question


def test_attempts_are_judged_by_a_careful_reading_with_the_others_beside_it():
    rows = pd.DataFrame(
        {"problem_id": ["p"] * 4, "attempt": range(4), "reference": ["18"] * 4,
         "prompt": ["{}"] * 4}
    )  # fmt: skip
    texts = ["#### 18", "The answer is 18.", "#### 17 or 18", "no idea"]
    completions = [Completion(text, "stop", 5, 3) for text in texts]
    table = math_attempts.tabulate_attempts("sami", rows, completions)
    Attempts.validate(table)
    assert table["flexible"].tolist() == ["18", "18", "18", ""]
    assert table["strict"].tolist() == ["18", "", "17", ""]
    assert table["answer"].tolist() == ["18", "18", "17", ""]
    assert table["reading"].tolist() == ["marked", "stated", "marked", "none"]
    assert table["correct"].tolist() == [True, True, False, False]
    assert table["strict_correct"].tolist() == [True, False, False, False]
    assert flexible_answer(texts[1]) == "18"


def test_every_published_problem_is_read_and_its_answer_extracts_to_itself():
    """GSM8K's own files are not shipped: https://github.com/openai/grade-school-math has them."""
    folder = os.environ.get("GSM8K_FOLDER")
    if folder is None:
        pytest.skip("GSM8K_FOLDER must name a folder with GSM8K's train.jsonl and test.jsonl")
    parameters = ProblemsParameters(source=f"gsm8k:{folder}/{{split}}.jsonl", train=7473, test=None)
    table = problems.load_problems(parameters, Path())
    assert table.groupby("split").size().to_dict() == {"train": 7473, "test": 1319}
    for row in table.itertuples():
        for read in (strict_answer, flexible_answer):
            assert same_number(read(row.solution), row.answer)
        for read in (harness_answer, harness_flexible_answer):
            assert read(row.solution) == row.answer
