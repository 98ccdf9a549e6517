from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from sami_pipeline import schemas
from sami_pipeline.evaluation import mt_bench
from sami_pipeline.evaluation.mt_bench_answers import turn_requests
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.models.prompts import Prompt, PromptTemplate
from sami_pipeline.parameters import EvaluationParameters, MtBenchParameters
from sami_pipeline.pipelines.mt_bench_eval.nodes.answering import answer_as, constitute_questions
from sami_pipeline.principles.constitutions import sample_constitutions
from sami_pipeline.schemas import Answers, Questions
from sami_pipeline.session.experiments import experiment_parameters

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
CHAT = {"kind": "chat", "turn": "{query}\n\nRules:\n{constitution}"}
PLAIN = {
    "kind": "plain",
    "turn": "Q: {query}\nRules: {constitution}\nA:",
    "turn_without_constitution": "Q: {query}\nA:",
    "answer_end": "\n--\n",
}


@pytest.fixture(scope="module")
def questions() -> pd.DataFrame:
    """Two questions of each category, with both turns; categories are interleaved."""
    table = pd.DataFrame(
        [
            {
                "question_id": str(100 * number + index),
                "category": category,
                "turn": turn,
                "question": f"Question {number} about {category}, turn {turn}?",
                "reference": "",
            }
            for number in (1, 2)
            for index, category in enumerate(MT_BENCH_CATEGORIES)
            for turn in (1, 2)
        ]
    )
    return Questions.validate(table)


@pytest.fixture
def constitutions(questions, principles) -> pd.DataFrame:
    first_turns = questions[questions["turn"] == 1].rename(columns={"question_id": "query_id"})
    return sample_constitutions(first_turns, principles, n_constitutions=2, seed=0)


def parameters(**changes) -> EvaluationParameters:
    return EvaluationParameters.model_validate(
        {
            "engine": {"transformers": {"dtype": "float32"}},
            "max_new_tokens": 6,
            "temperatures": TEMPERATURES,
        }
        | changes
    )


def answers_of(checkpoint, questions, constitutions, template=CHAT, model="base", **changes):
    """Let a real model answer as the node of that model does."""
    with TemporaryDirectory() as completions:
        return answer_as(
            checkpoint, questions, constitutions, template, parameters(**changes),
            Path(completions), model=model,
        )  # fmt: skip


class TestPlan:
    def test_first_turn_is_asked_under_every_constitution(self, questions, constitutions):
        asked = mt_bench.plan_first_turn(questions, constitutions, without_constitution=False)
        assert set(asked["turn"]) == {1}
        for _, group in asked.groupby("question_id"):
            assert sorted(group["constitution"]) == ["contrasting", "desired"]
        assert asked["question_id"].nunique() == 16

    def test_first_turn_is_asked_under_none_too_where_wanted(self, questions, constitutions):
        asked = mt_bench.plan_first_turn(questions, constitutions, without_constitution=True)
        bare = asked[asked["constitution"] == "none"]
        assert len(asked) == 3 * 16
        assert bare["text"].isna().all()
        assert set(bare["stances"]) == {"[]"}

    def test_only_questions_that_have_constitutions_are_asked(self, questions, constitutions):
        few = constitutions[constitutions["query_id"].isin(["100", "101"])]
        for bare in (False, True):
            asked = mt_bench.plan_first_turn(questions, few, without_constitution=bare)
            assert set(asked["question_id"]) == {"100", "101"}

    def test_second_turn_follows_desired_and_none_but_not_the_contrasting(
        self, questions, constitutions
    ):
        first = mt_bench.plan_first_turn(questions, constitutions, without_constitution=True)
        first["answer"] = first["question_id"] + first["constitution"]
        second = mt_bench.plan_second_turn(first, questions)
        assert set(second["turn"]) == {2}
        assert second["constitution"].value_counts().to_dict() == {"desired": 16, "none": 16}
        for row in second.itertuples():
            assert row.first_answer == row.question_id + row.constitution
            assert row.first_question.endswith("turn 1?")
            assert row.question.endswith("turn 2?")
            assert row.first_question.split(",")[0] == row.question.split(",")[0]

    def test_constitution_of_the_second_turn_is_that_of_the_first(self, questions, constitutions):
        first = mt_bench.plan_first_turn(questions, constitutions, without_constitution=False)
        second = mt_bench.plan_second_turn(first.assign(answer="x"), questions)
        key = ["question_id", "constitution"]
        both = first.merge(second, on=key, suffixes=("_1", "_2"))
        assert len(both) == 16
        assert both["text_1"].equals(both["text_2"])
        assert both["stances_1"].equals(both["stances_2"])

    def test_first_questions_of_each_category_keep_all_their_turns(self, questions):
        chosen = mt_bench.asked_questions(questions, parameters(questions_per_category=1))
        assert chosen.groupby("category")["question_id"].nunique().eq(1).all()
        assert len(chosen) == 2 * len(MT_BENCH_CATEGORIES)
        assert chosen["question"].str.contains("Question 1").all()
        assert mt_bench.asked_questions(questions, parameters()).equals(questions)
        many = parameters(questions_per_category=9)
        assert mt_bench.asked_questions(questions, many).equals(questions)

    def test_with_one_turn_no_second_question_is_asked(self, questions):
        chosen = mt_bench.asked_questions(questions, parameters(turns=1, questions_per_category=1))
        assert set(chosen["turn"]) == {1}
        assert chosen["category"].tolist() == list(MT_BENCH_CATEGORIES)

    def test_every_category_is_sampled_at_its_own_temperature(self, questions):
        table = questions.assign(text=None, stances="[]", constitution="desired")
        _, requests = turn_requests(
            table[table["turn"] == 1],
            PromptTemplate.model_validate(CHAT),
            parameters(temperature=0.3),
        )
        taken = dict(zip(table.loc[table["turn"] == 1, "category"], requests, strict=True))
        assert {name: asked.sampling.temperature for name, asked in taken.items()} == TEMPERATURES
        assert parameters(temperature=0.3).temperature_of("poems") == 0.3

    @pytest.mark.parametrize("turns", [1, 2])
    def test_only_what_a_second_turn_follows_goes_on(self, questions, turns):
        asked = mt_bench.asked_questions(questions, parameters(turns=turns))
        table = pd.concat(
            [
                asked.assign(
                    constitution=constitution, text=None, stances="[]", first_question="a",
                    first_answer="b",
                )
                for constitution in ("desired", "contrasting")
            ]
        )  # fmt: skip
        template = PromptTemplate.model_validate(CHAT)
        rows, requests = turn_requests(table, template, parameters(turns=turns))
        expected = (rows["turn"] == 1) & (rows["constitution"] == "desired") & (turns == 2)
        assert [each.goes_on for each in requests] == expected.tolist()

    def test_category_without_a_temperature_is_an_error_that_names_it(self):
        values = experiment_parameters("mt_bench").model_dump()
        del values["evaluation"]["temperatures"]["stem"]
        with pytest.raises(ValueError, match=r"evaluation\.temperatures: stem missing"):
            MtBenchParameters.model_validate(values)

    def test_constitutions_are_drawn_for_the_questions_that_are_asked(self, questions, principles):
        drawn = constitute_questions(questions, principles, parameters(questions_per_category=1))
        assert set(drawn["query_id"]) == {str(100 + i) for i in range(8)}


class TestAnswers:
    def test_one_row_for_each_question_turn_and_constitution(
        self, random_checkpoint, questions, constitutions
    ):
        answers = answers_of(random_checkpoint, questions, constitutions, without_constitution=True)
        Answers.validate(answers)
        assert list(answers.columns) == list(schemas.Answers.empty())
        assert set(answers["model"]) == {"base"}
        counts = answers.groupby(["turn", "constitution"]).size().to_dict()
        assert counts == {
            (1, "contrasting"): 16,
            (1, "desired"): 16,
            (1, "none"): 16,
            (2, "desired"): 16,
            (2, "none"): 16,
        }

    def test_only_some_questions_are_asked_also_without_constitution(
        self, random_checkpoint, questions, principles
    ):
        changes = {"questions_per_category": 1, "without_constitution": True}
        drawn = constitute_questions(questions, principles, parameters(**changes))
        answers = answers_of(random_checkpoint, questions, drawn, **changes)
        assert answers["question_id"].nunique() == 8

    @pytest.mark.parametrize("template", [CHAT, PLAIN], ids=["chat", "plain"])
    def test_second_prompt_holds_the_first_question_and_the_models_own_answer(
        self, random_checkpoint, questions, constitutions, template
    ):
        answers = answers_of(
            random_checkpoint, questions, constitutions, template, without_constitution=True
        )
        texts = questions.set_index(["question_id", "turn"])["question"]
        rules = constitutions.set_index(["query_id", "constitution"])["text"]
        firsts = answers[answers["turn"] == 1].set_index(["question_id", "constitution"])["answer"]
        for row in answers[answers["turn"] == 2].itertuples():
            prompt = Prompt.from_json(row.prompt)
            parts = [
                texts[row.question_id, 1],
                firsts[row.question_id, row.constitution],
                texts[row.question_id, 2],
            ]
            if prompt.messages:
                assert [role for role, _ in prompt.messages] == ["user", "assistant", "user"]
                for (_, content), part in zip(prompt.messages, parts, strict=True):
                    assert part in content
                assert prompt.messages[1][1] == parts[1]
            text = prompt.text or "\n".join(content for _, content in prompt.messages)
            assert text.index(parts[0]) < text.index(parts[2])
            assert parts[1] in text[text.index(parts[0]) : text.index(parts[2])]
            if row.constitution == "none":
                assert "Rules" not in text
            else:
                assert text.count(rules[row.question_id, row.constitution]) == 2

    def test_first_prompt_holds_the_question_and_its_constitution_alone(
        self, random_checkpoint, questions, constitutions
    ):
        answers = answers_of(random_checkpoint, questions, constitutions)
        texts = questions[questions["turn"] == 1].set_index("question_id")["question"]
        rules = constitutions.set_index(["query_id", "constitution"])["text"]
        for row in answers[answers["turn"] == 1].itertuples():
            text = rules[row.question_id, row.constitution]
            assert Prompt.from_json(row.prompt).messages == (
                ("user", f"{texts[row.question_id]}\n\nRules:\n{text}"),
            )

    def test_seed_matters_only_where_the_temperature_is_above_zero(
        self, random_checkpoint, questions, constitutions
    ):
        one, other = (
            answers_of(random_checkpoint, questions, constitutions, seed=seed) for seed in (0, 1)
        )
        same = (one["answer"] == other["answer"]).groupby(one["category"]).all()
        assert same[["extraction", "math", "coding", "reasoning"]].all()
        assert not same[["writing", "roleplay"]].any()

    def test_degenerate_answers_are_marked(self, questions, constitutions):
        def generate(rows, description):
            loop = "la " * 60
            return rows.assign(
                prompt="{}",
                answer=[loop if c == "math" else "A plain answer." for c in rows["category"]],
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
            )

        answers = mt_bench.answer_questions(
            "sami", questions, constitutions, generate, without_constitution=False
        )
        assert (answers["degenerate"] == (answers["category"] == "math")).all()
