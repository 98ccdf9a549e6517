"""Answers and verdicts of other projects, as their files hold them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import InputError
from sami_pipeline.inputs import answer_files
from sami_pipeline.models.checkpoints import ModelSource
from sami_pipeline.parameters import MtBenchParameters
from sami_pipeline.schemas import Answers
from sami_pipeline.settings import CONFIG_LOADER_ARGS

PUBLISHED = Path(__file__).parents[3] / "shared" / "published"
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
FILES = {
    "sft": "SFT-temperature-0.0.json",
    "sami": "SAMI-epoch-0.2-wBJc5j-temperature-0.0.json",
    "dpo": "DPO_step_11520-temperature-0.0.json",
}
VERDICTS = {"sami": "SAMI-epoch-0.2-wBJc5j-vs-SFT.json", "dpo": "DPO_step_11520-vs-SFT.json"}
CATEGORIES = {"81": "writing", "101": "reasoning"}


def write_lines(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


@published
@pytest.mark.parametrize(
    ("model", "wins", "ties", "losses", "tokens"),
    [("sami", 43, 5, 32, 255), ("dpo", 43, 6, 31, 179)],
)
def test_published_verdicts_are_counted_as_the_repository_has_them(
    model, wins, ties, losses, tokens
):
    answers = answer_files.read_published_answers(PUBLISHED / FILES[model], model)
    assert answers.groupby("category").size().to_dict() == dict.fromkeys(
        ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
        10,
    )
    assert set(answers["question_id"]) == {str(number) for number in range(81, 161)}
    verdicts = answer_files.read_published_verdicts(
        PUBLISHED / VERDICTS[model], answers, model=model, opponent="sft", judge="GPT-4o"
    )
    counts = verdicts["winner"].value_counts().to_dict()
    assert counts == {"model": wins, "tie": ties, "opponent": losses}
    assert round(verdicts["model_tokens"].mean()) == tokens
    assert round(verdicts["opponent_tokens"].mean()) == 157


@published
def test_published_answers_stand_beside_the_question_they_answer():
    answers = answer_files.read_published_answers(PUBLISHED / FILES["sft"], "sft")
    raw = json.loads((PUBLISHED / FILES["sft"]).read_text())
    row = answers[answers["question_id"] == "101"].iloc[0]
    assert row["category"] == "reasoning"
    assert row["answer"] == raw["response"]["20"]
    assert row["question"] == raw["question"]["20"]


def test_fastchat_answers_have_a_row_a_turn(tmp_path):
    path = write_lines(
        tmp_path / "m.jsonl",
        {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]},
    )
    table = answer_files.read_fastchat_answers(path, CATEGORIES)
    assert table[["question_id", "turn", "answer"]].values.tolist() == [
        ["81", 1, "one"],
        ["81", 2, "two"],
    ]


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("model_1", "model_1", "model"),
        ("model_2", "model_2", "opponent"),
        ("model_1", "model_2", "tie"),
        ("tie", "tie", "tie"),
        ("model_1", "tie", "tie"),
        ("model_1", "error", "tie"),
        ("error", "error", "invalid"),
    ],
)
def test_fastchat_pairs_are_won_where_both_orders_say_so(tmp_path, first, second, winner):
    path = write_lines(
        tmp_path / "pair.jsonl",
        {
            "question_id": 101, "model_1": "a", "model_2": "b", "turn": 2,
            "g1_winner": first, "g2_winner": second, "judge": ["gpt-4", "pair-v2"],
        },
    )  # fmt: skip
    row = answer_files.read_fastchat_verdicts(path, CATEGORIES).iloc[0]
    assert row["winner"] == winner
    assert (row["judge"], row["turn"], row["category"]) == ("gpt-4", 2, "reasoning")


def test_fastchat_ratings_of_minus_one_are_none(tmp_path):
    entries = [{"question_id": 81, "model": "m", "score": score, "turn": 1} for score in (7, -1)]
    table = answer_files.read_fastchat_ratings(write_lines(tmp_path / "s", *entries), CATEGORIES)
    assert table["rating"].tolist()[0] == 7
    assert table["rating"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        ("answers", "{", "is no valid JSON"),
        ("answers", '{"response": {}}', "constitution: is missing"),
        (
            "answers",
            '{"response": {"0": 1}, "constitution": {"0": ""}, "question": {"0": ""},'
            ' "category": {"0": ""}}',
            "response.0: must be text",
        ),
        ("fastchat", '{"question_id": 81}\n', "line 1: model_id and choices"),
        ("fastchat", '\n{"question_id": 7, "model_id": "m", "choices": [{"turns": []}]}', "line 2"),
        ("fastchat", "", "is empty"),
        ("verdicts", '{"question_id": 81, "model_1": "a"}', "model_2: is missing"),
        ("ratings", '{"question_id": 81, "model": "a"}', "model or score is missing"),
    ],
)
def test_what_is_no_such_file_is_one_line_with_its_place(tmp_path, read, content, message):
    path = tmp_path / "file.json"
    path.write_text(content)
    readers = {
        "answers": lambda: answer_files.read_published_answers(path, "m"),
        "fastchat": lambda: answer_files.read_fastchat_answers(path, CATEGORIES),
        "verdicts": lambda: answer_files.read_fastchat_verdicts(path, CATEGORIES),
        "ratings": lambda: answer_files.read_fastchat_ratings(path, CATEGORIES),
    }
    with pytest.raises(InputError, match=message) as caught:
        readers[read]()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class TestAnswersOfAModelUnderTest:
    QUESTIONS = pd.DataFrame(
        [(str(q), "stem", turn, f"Question {q}.{turn}?") for q in (81, 82) for turn in (1, 2)],
        columns=["question_id", "category", "turn", "question"],
    )
    CONSTITUTIONS = pd.DataFrame(
        [(str(q), name, f'[["p", "{name}"]]', "rules") for q in (81, 82)
         for name in ("desired", "contrasting")],
        columns=["query_id", "constitution", "stances", "text"],
    )  # fmt: skip

    def read(self, path, questions=QUESTIONS) -> pd.DataFrame:
        table = answer_files.answers_from_file(
            "gpt", path, questions, self.CONSTITUTIONS,
            without_constitution=False, count_tokens=lambda text: len(text.split()),
        )  # fmt: skip
        return Answers.validate(table)

    def fastchat(self, path, questions=(81, 82)) -> Path:
        turns = {q: [f"{q} a", f"{q} b c"] for q in questions}
        return write_lines(
            path,
            *({"question_id": q, "model_id": "gpt-4", "choices": [{"turns": given}]}
              for q, given in turns.items()),
        )  # fmt: skip

    def test_fastchats_answers_stand_for_those_under_every_constitution(self, tmp_path):
        table = self.read(self.fastchat(tmp_path / "gpt-4.jsonl"))
        settings = table.groupby(["turn", "constitution"])["answer"].agg(list).to_dict()
        assert settings == {
            (1, "contrasting"): ["81 a", "82 a"],
            (1, "desired"): ["81 a", "82 a"],
            (2, "desired"): ["81 b c", "82 b c"],
        }
        assert table["completion_tokens"].tolist() == [2, 2, 3] * 2
        assert set(table["model"]) == {"gpt"}

    def test_table_of_an_earlier_run_is_read_with_what_it_says_of_each_answer(self, tmp_path):
        own = self.read(self.fastchat(tmp_path / "gpt-4.jsonl"))
        own = own.assign(model="sami", finish_reason="length", completion_tokens=7)
        own.to_parquet(tmp_path / "answers.parquet")
        again = self.read(tmp_path / "answers.parquet")
        pd.testing.assert_frame_equal(again.drop(columns="model"), own.drop(columns="model"))

    def test_missing_questions_are_refused_in_one_line(self, tmp_path):
        path = self.fastchat(tmp_path / "gpt-4.jsonl", questions=[81])
        with pytest.raises(InputError, match=r"gpt-4.jsonl: question 82, turn 1, is not answered"):
            self.read(path)
        assert len(self.read(path, self.QUESTIONS[self.QUESTIONS["question_id"] == "81"])) == 3
        rows = [{"question_id": 81, "turn": 1, "constitution": "desired", "answer": "x"}]
        with pytest.raises(InputError, match=r"constitution 'contrasting', is not answered"):
            self.read(write_lines(tmp_path / "own.jsonl", *rows), self.QUESTIONS[:1])

    @pytest.mark.parametrize(
        ("rows", "fault"),
        [
            ([{"question_id": 81, "turn": 1}], "line 1: answer: is missing"),
            ([{"question_id": 81, "turn": 1, "answer": 7}], "line 1: answer: must be text, got 7"),
            ([{"question_id": 81, "turn": 1, "answer": "x"}] * 2, "turn 1, is answered twice"),
            (
                [{"model": name, "question_id": 81, "turn": 1, "answer": "x"} for name in "ab"],
                r"several models \(a, b\)",
            ),
            ([{"question_id": 81, "choices": []}], r"line 1: choices\[0\].turns is missing"),
        ],
    )
    def test_file_that_is_not_whole_is_refused(self, tmp_path, rows, fault):
        with pytest.raises(InputError, match=fault):
            self.read(write_lines(tmp_path / "answers.jsonl", *rows))

    def test_answers_under_other_statements_are_refused(self, tmp_path):
        own = self.read(self.fastchat(tmp_path / "gpt-4.jsonl"))
        own.assign(stances='[["other", "principle"]]').to_parquet(tmp_path / "answers.parquet")
        with pytest.raises(InputError, match="was answered under other statements"):
            self.read(tmp_path / "answers.parquet")


def test_answers_in_trained_words_are_missed_before_anything_is_made(tmp_path):
    sides = {"principle": "Do.", "antithesis": "Do not."}
    worded = {
        use: {side: [text] for side, text in sides.items()} for use in ("training", "evaluation")
    }
    other = worded | {"evaluation": {"principle": ["Surely do."], "antithesis": ["Never do."]}}

    def by_side(words):
        return json.dumps({side: {use: words[use][side] for use in words} for side in sides})

    principles = pd.DataFrame(
        {
            "category": ["writing", "math"],
            "principle": "p",
            "wordings": map(by_side, (other, worded)),
        }
    )
    questions = pd.DataFrame(
        {"question_id": ["1", "2"], "category": ["writing", "math"], "turn": 1, "question": "?"}
    )
    answers = [
        {"question_id": question, "turn": 1, "answer": "x", "constitution": name}
        for question in "12"
        for name in ("desired", "contrasting")
    ]
    loader = OmegaConfigLoader(str(PROJECT_FOLDER / "conf"), env="test", **CONFIG_LOADER_ARGS)
    shipped = MtBenchParameters.model_validate(loader["parameters"]["mt_bench"])
    path = write_lines(tmp_path / "gpt.jsonl", *answers)
    models = shipped.models.model_copy(update={"under_test": ("base", "gpt")})
    models.sources["gpt"] = ModelSource(kind="answers", location=str(path))
    asked = {
        "questions_per_category": None,
        "turns": 1,
        "contrasting": True,
        "without_constitution": False,
    }
    parameters = shipped.model_copy(
        update={
            "models": models,
            "evaluation": shipped.evaluation.model_copy(update=asked | {"trained_wording": True}),
        }
    )
    with pytest.raises(InputError, match=r"1, turn 1 under .*'desired_trained_wording'.* 0 others"):
        answer_files.check_answer_files(parameters, questions, principles, tmp_path)
    write_lines(path, *answers, answers[0] | {"constitution": "desired_trained_wording"})
    answer_files.check_answer_files(parameters, questions, principles, tmp_path)
    with pytest.raises(InputError, match="trained_wording: no principle"):
        answer_files.check_answer_files(parameters, questions, principles[1:], tmp_path)
