"""What a model that judges is asked, what a real one answers, and what its verdicts amount to."""

import hashlib
import itertools
import logging

import pandas as pd
import pytest
import yaml
from openai_server import MODEL, OpenAIServer

from sami_pipeline.engines import Completion, transformers_engine
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import judge_kinds, judge_requests, judges, mt_bench
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.evaluation.judge_kinds.base import (
    ConstrainedVerdict,
    JudgeKind,
    decide_comparisons,
    decide_ratings,
    each_alone,
)
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.parameters import JudgeParameters, ModelsParameters
from sami_pipeline.pipelines.data_ingest.nodes import tidy_judge_prompts, tidy_questions
from sami_pipeline.pipelines.mt_bench_eval.nodes import judging
from sami_pipeline.result_tables import compliance, compliance_difference, judge_quality, ratings
from sami_pipeline.schemas import (
    Checked,
    Judgements,
    JudgePrompts,
    JudgeQuality,
    Questions,
    Ratings,
    Verdicts,
)

PAIRS = [("sami", "base"), ("dpo", "base"), ("sami", "dpo")]
# Both turns under the desired constitution and under none, the first under the contrasting one.
ASKED = [(1, "desired"), (1, "contrasting"), (1, "none"), (2, "desired"), (2, "none")]
COMPARING = ("pairwise", "constitution")


@pytest.fixture(scope="module")
def prompts(project_folder) -> pd.DataFrame:
    path = project_folder / "data" / "01_raw" / "mt_bench" / "judge_prompts.jsonl"
    written = {
        file.stem: lambda file=file: yaml.safe_load(file.read_text("utf-8"))
        for file in (project_folder / "data" / "01_raw" / "judge_prompts").glob("*.yml")
    }
    table = tidy_judge_prompts(pd.read_json(path, lines=True), written)
    return JudgePrompts.validate(table)


def questions_of(categories) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "question_id": category,
                "category": category,
                "turn": turn,
                "question": f"<question {category} {turn}>",
                "reference": f"<reference {category} {turn}>",
            }
            for category in categories
            for turn in (1, 2)
        ]
    )


def answers_of(categories, models=("base", "sami", "dpo"), asked=ASKED) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "question_id": category,
                "category": category,
                "turn": turn,
                "constitution": constitution,
                "answer": f"<{model} {category} {turn} {constitution}>",
            }
            for model in models
            for category in categories
            for turn, constitution in asked
        ]
    )


def constitutions_of(categories) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"query_id": category, "constitution": name, "text": f"<rules {category} {name}>"}
            for category in categories
            for name in ("desired", "contrasting")
        ]
    )


@pytest.fixture
def plan(prompts):
    """Return a function that plans what is asked about some categories."""

    def planned(kind, categories=("writing", "math"), *, constrained=False, **changes):
        tables = {
            "answers": answers_of(categories),
            "questions": questions_of(categories),
            "constitutions": constitutions_of(categories),
            "prompts": prompts,
            "pairs": PAIRS,
        } | changes
        return judges.plan_judgements(kind, **tables, constrained=constrained)

    return planned


def shown(row) -> str:
    """Return what the user message of a planned prompt says."""
    messages = dict(Prompt.from_json(row.prompt).messages)
    return messages["user"]


def positions(text: str, *parts: str) -> list[int]:
    return [text.index(part) for part in parts]


class TestPlan:
    @pytest.mark.parametrize("kind", COMPARING)
    def test_every_pair_is_compared_on_every_answer_in_both_orders(self, plan, kind):
        planned = plan(kind)
        asked = [each for each in ASKED if kind == "pairwise" or each[1] != "none"]
        expected = {
            (model, opponent, category, *each, order)
            for model, opponent in PAIRS
            for category in ("writing", "math")
            for each in asked
            for order in ("model_first", "opponent_first")
        }
        key = ["model", "opponent", "question_id", "turn", "constitution", "order"]
        assert len(planned) == len(expected)
        assert set(planned[key].itertuples(index=False, name=None)) == expected
        assert set(planned["judge"]) == {kind}

    def test_every_answer_is_rated_once_however_many_pairs_it_is_in(self, plan):
        planned = plan("single")
        assert len(planned) == 3 * 2 * len(ASKED)
        key = ["model", "question_id", "turn", "constitution"]
        assert not planned.duplicated(key).any()
        assert set(planned["opponent"]) == {""}
        assert set(planned["order"]) == {"single"}

    def test_an_order_is_drawn_for_each_question_of_a_match_and_stays(self, plan):
        kind, key = "principle_free", ["model", "opponent", "question_id"]
        questions = [f"q{number}" for number in range(60)]
        once = [(1, "desired"), (1, "contrasting")]
        tables = {
            "answers": answers_of(questions, asked=once),
            "questions": questions_of(questions),
            "constitutions": constitutions_of(questions),
        }
        drawn = plan(kind, orders="random", seed=3, **tables)
        assert len(drawn) == len(plan(kind, **tables)) // 2
        assert (drawn.groupby(key)["order"].nunique() == 1).all(), "a question has one order"
        first = drawn.groupby(["model", "opponent"])["order"].agg(
            lambda orders: (orders == "model_first").mean()
        )
        assert first.between(0.3, 0.7).all()
        orders = drawn.drop_duplicates(key).set_index(key)["order"]
        few = plan(kind, orders="random", seed=3, **tables | {"pairs": PAIRS[:1]})
        assert orders.loc[few.set_index(key).index].tolist() == few["order"].tolist()
        other = plan(kind, orders="random", seed=4, **tables)
        other = other.drop_duplicates(key).set_index(key)["order"].reindex(orders.index)
        assert not (other == orders).all()

    @pytest.mark.parametrize("kind", ["principle_based", "principle_based_form"])
    def test_published_judgement_shows_the_constitution_and_is_of_first_turns(self, plan, kind):
        once = answers_of(["math"], asked=[(1, "desired"), (1, "none")])
        planned = plan(kind, ["math"], answers=once)
        assert set(planned["constitution"]) == {"desired"}
        assert planned["prompt"].str.contains("<rules math desired>").all()
        assert not planned["prompt"].str.contains("<reference").any()
        with pytest.raises(InputError, match=rf"{kind.replace('_', '-')}-v1-multi-turn.*turns=1"):
            plan(kind)

    @pytest.mark.parametrize("kind", COMPARING)
    def test_order_decides_whose_answer_is_assistant_a(self, plan, kind):
        for row in plan(kind).itertuples():
            text = shown(row)
            answers = [
                f"<{name} {row.question_id} {row.turn} {row.constitution}>"
                for name in (row.model, row.opponent)
            ]
            model, opponent = positions(text, *answers)
            assert (model < opponent) == (row.order == "model_first")
            first_is_a = text.index("Assistant A") < min(model, opponent)
            assert first_is_a and text.count(answers[0]) == text.count(answers[1]) == 1

    @pytest.mark.parametrize("kind", ["pairwise", "single"])
    def test_references_are_shown_in_three_categories_and_nowhere_else(self, plan, kind):
        planned = plan(kind, MT_BENCH_CATEGORIES)
        with_reference = set()
        for row in planned.itertuples():
            parts = [f"<reference {row.category} {turn}>" for turn in range(1, row.turn + 1)]
            if "<reference" in shown(row):
                with_reference.add(row.category)
                positions(shown(row), *parts)
                assert shown(row).count("<reference") == row.turn
        assert with_reference == {"math", "reasoning", "coding"}
        for category, rows in planned.groupby("category"):
            seen = rows["prompt"].str.contains("<reference").mean()
            assert seen == (category in with_reference)

    def test_constitution_judge_sees_the_constitution_and_no_reference(self, plan):
        for row in plan("constitution", MT_BENCH_CATEGORIES).itertuples():
            assert shown(row).count(f"<rules {row.category} {row.constitution}>") == 1
            assert shown(row).count("<rules") == 1
            assert "<reference" not in shown(row)
        for kind in ("pairwise", "single"):
            assert not plan(kind)["prompt"].str.contains("<rules").any()

    @pytest.mark.parametrize("kind", ["pairwise", "constitution", "single"])
    def test_second_turn_shows_each_models_own_first_turn_under_the_same_constitution(
        self, plan, kind
    ):
        second = plan(kind).query("turn == 2")
        assert set(second["constitution"]) >= {"desired"}
        for row in second.itertuples():
            text = shown(row)
            for name in filter(None, (row.model, row.opponent)):
                q = row.question_id
                first, last = positions(
                    text, f"<{name} {q} 1 {row.constitution}>", f"<{name} {q} 2 {row.constitution}>"
                )
                assert first < last
            assert f"<question {row.question_id} 1>" in text
            assert f"<question {row.question_id} 2>" in text

    @pytest.mark.parametrize("kind", ["pairwise", "constitution", "single"])
    def test_first_turn_shows_nothing_of_the_second(self, plan, kind):
        for row in plan(kind).query("turn == 1").itertuples():
            assert f"<question {row.question_id} 1>" in shown(row)
            assert f"{row.question_id} 2" not in shown(row)

    def test_prompts_are_those_of_mt_bench(self, plan, prompts):
        systems = prompts.set_index("name")["system_prompt"]
        used = {
            (row.category, row.turn): dict(Prompt.from_json(row.prompt).messages)["system"]
            for row in plan("pairwise").itertuples()
        }
        assert used == {
            ("writing", 1): systems["pair-v2"],
            ("writing", 2): systems["pair-v2-multi-turn"],
            ("math", 1): systems["pair-math-v1"],
            ("math", 2): systems["pair-math-v1-multi-turn"],
        }

    def test_text_of_models_is_never_taken_for_a_placeholder(self, plan):
        answers = answers_of(["writing"])
        answers["answer"] = "{question} {0} {{ } " + answers["answer"]
        for row in plan("pairwise", ["writing"], answers=answers).itertuples():
            assert shown(row).count("{question} {0} {{ } <") == 2 * row.turn

    @pytest.mark.parametrize("kind", ["pairwise", "constitution", "single"])
    def test_constrained_prompt_ends_where_the_verdict_follows(self, plan, kind):
        free, held = plan(kind), plan(kind, constrained=True)
        opening = judge_kind(kind).constrained.opening
        for text, started in zip(free["prompt"], held["prompt"], strict=True):
            before = Prompt.from_json(text).messages
            assert before[-1][0] == "user"
            assert Prompt.from_json(started).messages == (*before, ("assistant", opening))

    @pytest.mark.parametrize("kind", ["pairwise", "constitution", "single"])
    def test_opening_with_a_choice_is_a_text_with_that_verdict(self, kind):
        opening, choices = judge_kind(kind).constrained
        for choice in choices:
            verdict = judges.read_verdict(kind, choice, constrained=True)
            closed = choice if choice.endswith("]]") else f"{choice}]]"
            assert judges.read_verdict(kind, opening + closed, constrained=False) == verdict
        for other in ("", "D", "[[A]]", "11]]"):
            assert judges.read_verdict(kind, other, constrained=True) == "invalid"

    def test_no_choice_of_ratings_begins_another(self):
        for one, other in itertools.permutations(judge_kind("single").constrained.choices, 2):
            assert not other.startswith(one)


class TestReferences:
    OWN, PUBLISHED = ["19%", "0%"], ["one fifth", "none"]

    def test_question_files_own_come_first_and_wrong_ones_of_gpt4_never(self):
        assert mt_bench.references("112", self.OWN, self.PUBLISHED) == self.OWN
        assert mt_bench.references("112", ["19%", ""], self.PUBLISHED) == ["19%", "none"]
        assert mt_bench.references("112", None, self.PUBLISHED) == self.PUBLISHED
        assert mt_bench.references("113", self.OWN, self.PUBLISHED) == self.OWN
        assert mt_bench.references("113", ["19%"], self.PUBLISHED) == ["19%", ""]
        assert mt_bench.references("113", None, self.PUBLISHED) == ["", ""]
        assert mt_bench.references("81", None, None) == ["", ""]

    def test_judge_sees_no_wrong_reference_unless_it_is_asked_for(self, project_folder, caplog):
        folder = project_folder / "data" / "01_raw" / "mt_bench"
        files = (folder / "question.jsonl", folder / "reference_answer" / "gpt-4.jsonl")
        questions = tidy_questions(*(pd.read_json(path, lines=True) for path in files))
        Questions.validate(questions)
        wrong = questions[questions["question_id"].isin(mt_bench.WRONG_REFERENCES)]
        assert len(wrong) == 2 * 13
        assert (wrong["reference"] != wrong["published_reference"]).all()
        assert wrong["reference"].ne("").all()
        with caplog.at_level(logging.INFO):
            shown_by_default = judge_requests.with_references(questions, JudgeParameters())
        assert "of 13 questions are wrong" in caplog.text
        assert "104, 105, 109" in caplog.text
        assert shown_by_default["reference"].tolist() == questions["reference"].tolist()
        as_published = judge_requests.with_references(
            questions, JudgeParameters(references="published")
        )
        assert as_published["reference"].tolist() == questions["published_reference"].tolist()


class TestKinds:
    def test_a_kind_is_added_by_one_record(self, plan, prompts, monkeypatch):
        """A judge that says yes or no to each answer: own prompt, verdicts and rule."""

        def decide(judgements, pairs):
            said = judgements.assign(
                verdict=judgements["verdict"].map({"yes": "10", "no": "1", "invalid": "invalid"})
            )
            return decide_ratings(said, pairs)

        kind = JudgeKind(
            name="polite",
            prompt="polite-v1",
            parse=lambda text, truncated: text if text in ("yes", "no") else "invalid",
            constrained=ConstrainedVerdict("Polite: ", ("yes", "no")),
            calls=each_alone,
            decide=decide,
        )
        monkeypatch.setattr(judge_kinds, "KINDS", [*judge_kinds.KINDS, kind])
        parameters = JudgeParameters(kind="polite", model="base", answer_format="choice")
        own = prompts.iloc[[0, 0]].assign(
            name=["polite-v1", "polite-v1-multi-turn"],
            prompt_template=["Polite? {answer}", "Polite? {answer_2}"],
        )
        planned = plan("polite", prompts=pd.concat([prompts, own]), constrained=True)
        assert set(planned["order"]) == {"single"}
        (request, *_) = judge_requests.judgement_requests(planned, parameters)
        assert request.sampling.choices == ("yes", "no")
        completions = [
            Completion("yes" if row.model == "sami" else "no", "stop", 5, 1)
            for row in planned.itertuples()
        ]
        judgements = judge_requests.tabulate_judgements(planned, completions, parameters)
        Judgements.validate(judgements)
        verdicts = judge_requests.decide_verdicts(judgements, parameters, PAIRS)
        Verdicts.validate(verdicts)
        winners = verdicts.groupby(["model", "opponent"])["winner"].agg(set).to_dict()
        assert winners == {
            ("sami", "base"): {"model"}, ("dpo", "base"): {"tie"}, ("sami", "dpo"): {"model"},
        }  # fmt: skip

    def test_unknown_kind_is_refused_with_those_that_there_are(self):
        with pytest.raises(ValueError, match="'oracle'; known: checklist, pairwise, constitution"):
            JudgeParameters(kind="oracle")


class TestBadInput:
    def test_missing_reference_is_named(self, plan):
        questions = questions_of(["math"])
        questions.loc[questions["turn"] == 2, "reference"] = ""
        with pytest.raises(InputError, match="question math: ref_answer_2: is empty"):
            plan("pairwise", ["math"], questions=questions)
        plan("constitution", ["math"], questions=questions)

    def test_question_whose_only_reference_is_wrong_is_judged_without_and_the_log_says_so(
        self, plan, caplog
    ):
        tables = {
            "questions": questions_of(["math"]).assign(question_id="113", reference=""),
            "answers": answers_of(["math"]).assign(question_id="113"),
        }
        with caplog.at_level(logging.WARNING):
            planned = plan("pairwise", ["math"], **tables)
        assert "1 questions have no reference answer but a wrong one" in caplog.text
        assert not planned["prompt"].str.contains("Reference").any()

    def test_missing_prompt_is_named(self, plan, prompts):
        rest = prompts[prompts["name"] != "pair-math-v1"]
        with pytest.raises(InputError, match="pair-math-v1 is missing"):
            plan("pairwise", prompts=rest)

    @pytest.mark.parametrize(
        ("template", "fault"),
        [
            ("{answer_a} {answer_b}", "{constitution} is missing"),
            ("{constitution} {answer_a}", "{answer_b} is missing"),
            ("{constitution} {answer_a} {answer_b} {answer_c}", "{answer_c} is unknown"),
            ("{constitution} {answer_a} {answer_b} {}", "{} is unknown"),
            ("{constitution} {answer_a} {answer_b} {", "doubled"),
        ],
    )
    def test_prompt_with_wrong_placeholders_is_named(self, plan, prompts, template, fault):
        changed = prompts.copy()
        changed.loc[changed["name"] == "constitution-v1", "prompt_template"] = template
        with pytest.raises(InputError, match="judge prompt constitution-v1: prompt_template") as e:
            plan("constitution", prompts=changed)
        assert fault in str(e.value)
        assert "\n" not in str(e.value)

    @pytest.mark.parametrize("absent", ["sami", "base"])
    def test_models_that_did_not_answer_the_same_are_an_error(self, plan, absent):
        answers = answers_of(["writing"])
        rows = answers[(answers["model"] != absent) | (answers["turn"] == 1)]
        with pytest.raises(ValueError, match=r"base and sami did not answer the same.*writing"):
            plan("pairwise", ["writing"], answers=rows)


def judged(kind="pairwise", **verdicts) -> pd.DataFrame:
    """Return both orders of comparisons of sami with base, by question."""
    return pd.DataFrame(
        [
            {
                "judge": kind,
                "model": "sami",
                "opponent": "base",
                "question_id": question,
                "category": "writing",
                "turn": 1,
                "constitution": "desired",
                "order": order,
                "sample": 0,
                "verdict": verdict,
            }
            for question, both in verdicts.items()
            for order, verdict in zip(("model_first", "opponent_first"), both, strict=True)
        ]
    )


WINNERS = {
    ("A", "B"): "model",
    ("B", "A"): "opponent",
    ("C", "C"): "tie",
    ("A", "A"): "tie",
    ("B", "B"): "tie",
    ("A", "C"): "tie",
    ("C", "B"): "tie",
    ("B", "C"): "tie",
    ("C", "A"): "tie",
}


class TestComparisons:
    @pytest.mark.parametrize(
        "orders", list(itertools.product(["A", "B", "C", "invalid", "contradictory"], repeat=2))
    )
    def test_win_needs_both_orders_and_one_invalid_call_makes_it_invalid(self, orders):
        (winner,) = decide_comparisons(judged(q=orders))["winner"]
        assert winner == WINNERS.get(orders, "invalid")

    def test_verdicts_keep_their_contract_whatever_the_order_of_the_calls(self):
        table = judged(q1=("A", "B"), q2=("B", "A"), q3=("invalid", "A"))
        verdicts = Verdicts.validate(decide_comparisons(table))
        assert verdicts["winner"].tolist() == ["model", "opponent", "invalid"]
        assert verdicts[["model_score", "opponent_score"]].isna().all(axis=None)
        shuffled = decide_comparisons(table.sample(frac=1, random_state=3))
        pd.testing.assert_frame_equal(
            shuffled.sort_values("question_id", ignore_index=True), verdicts
        )

    def test_comparison_without_its_other_order_is_an_error(self):
        with pytest.raises(ValueError, match="one of its orders"):
            decide_comparisons(judged(q1=("A", "B"), q2=("A", "B")).iloc[:3])

    def test_one_verdict_decides_where_one_order_was_asked(self):
        table = judged(q1=("A", ""), q2=("", "A"), q3=("C", ""), q4=("", "contradictory"))
        verdicts = Verdicts.validate(decide_comparisons(table[table["verdict"] != ""]))
        assert verdicts["winner"].tolist() == ["model", "opponent", "tie", "invalid"]

    def test_call_without_a_verdict_counts_as_the_parameters_say(self):
        table = judged(q1=("A", "invalid"), q2=("contradictory", "A"), q3=("A", "B"))
        left_out, half = (
            judge_requests.decide_verdicts(table, parameters(no_verdict=counted), PAIRS)["winner"]
            for counted in ("invalid", "tie")
        )
        assert left_out.tolist() == ["invalid", "invalid", "model"]
        assert half.tolist() == ["tie", "tie", "model"]
        with pytest.raises(ValueError, match="no_verdict: single rates single answers"):
            parameters("single", no_verdict="tie")

    @pytest.mark.parametrize(
        ("kind", "verdicts"),
        [("principle_based", ["C", "invalid", "A"]), ("principle_free", ["B", "C", "A"])],
    )
    def test_forced_choice_ties_only_where_neither_answered(self, plan, kind, verdicts):
        answers = answers_of(["q1", "q2", "q3"], asked=[(1, "desired")])
        answers.loc[answers["question_id"] == "q1", "answer"] = " \n"
        answers.loc[(answers["question_id"] == "q2") & (answers["model"] == "base"), "answer"] = ""
        settings = parameters(kind, "text", orders="random")
        planned = plan(kind, ["q1", "q2", "q3"], answers=answers, pairs=PAIRS[:1], orders="random")
        said = [
            Completion(f"Final Response: {letter}", "stop", 9, 3)
            for letter in planned["question_id"].map({"q1": "B", "q2": "C", "q3": "A"})
        ]
        table = Judgements.validate(judge_requests.tabulate_judgements(planned, said, settings))
        assert table.sort_values("question_id")["verdict"].tolist() == verdicts

    @pytest.mark.parametrize(
        ("repeats", "verdict"),
        [
            (["A", "A", "B"], "A"),
            (["A", "B"], "C"),
            (["A", "B", "C"], "C"),
            (["B", "invalid", "contradictory"], "invalid"),
            (["B", "invalid"], "B"),
            (["invalid", "invalid"], "invalid"),
        ],
    )
    def test_majority_of_the_repeats_decides_before_the_orders_are_compared(self, repeats, verdict):
        once = judged(q=("A", "B"))
        table = pd.concat(
            [once.assign(sample=number, verdict=said) for number, said in enumerate(repeats)]
        )
        combined = judges.combine_repeats(table, "pairwise")
        assert combined["order"].tolist() == ["model_first", "opponent_first"]
        assert set(combined["verdict"]) == {verdict}

    def test_repeats_that_could_not_differ_are_refused(self):
        for settings in ({"answer_format": "choice", "temperature": 1.0}, {}):
            with pytest.raises(ValueError, match=r"repeats: .* all repeats are the same; set a"):
                parameters(**{"answer_format": "text", "repeats": 2} | settings)


def rated(verdicts: dict[tuple[str, str, int, str], str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "judge": "single",
                "model": model,
                "question_id": question,
                "category": "math" if question == "q3" else "writing",
                "turn": turn,
                "constitution": constitution,
                "verdict": verdict,
            }
            for (model, question, turn, constitution), verdict in verdicts.items()
        ]
    )


class TestRatings:
    @pytest.mark.parametrize(
        ("model", "opponent", "winner"),
        [
            ("8", "5", "model"),
            ("5", "8", "opponent"),
            ("10", "9", "model"),
            ("7", "7", "tie"),
            ("7.05", "7", "tie"),
            ("7.2", "7", "model"),
            ("invalid", "7", "invalid"),
            ("7", "invalid", "invalid"),
            ("invalid", "invalid", "invalid"),
        ],
    )
    def test_higher_rating_wins(self, model, opponent, winner):
        table = rated({("sami", "q", 1, "none"): model, ("base", "q", 1, "none"): opponent})
        verdicts = Verdicts.validate(decide_ratings(table, [("sami", "base")]))
        (row,) = verdicts.itertuples()
        assert row.winner == winner
        for score, rating in ((row.model_score, model), (row.opponent_score, opponent)):
            assert pd.isna(score) if rating == "invalid" else score == float(rating)

    def test_repeated_ratings_count_by_their_mean(self):
        said = [("8", "5"), ("5", "5"), ("invalid", "invalid"), ("5", "7")]
        table = pd.concat(
            rated(dict.fromkeys([("sami", "q", 1, "none")], sami)
                  | dict.fromkeys([("base", "q", 1, "none")], base)).assign(
                opponent="", order="single", sample=number
            )
            for number, (sami, base) in enumerate(said)
        )  # fmt: skip
        combined = judges.combine_repeats(table, "single")
        assert combined["verdict"].tolist() == ["6", "5.66667"]
        (row,) = decide_ratings(combined, [("sami", "base")]).itertuples()
        assert (row.winner, row.model_score) == ("model", 6)

    def test_every_pair_gets_its_verdicts_from_the_same_ratings(self):
        numbers = {"base": "4", "sami": "6", "dpo": "5"}
        table = rated({(model, "q", 1, "none"): number for model, number in numbers.items()})
        verdicts = decide_ratings(table, PAIRS)
        assert verdicts[["model", "opponent"]].values.tolist() == [list(pair) for pair in PAIRS]
        assert set(verdicts["winner"]) == {"model"}

    def test_models_that_were_not_rated_on_the_same_answers_are_an_error(self):
        table = rated({("sami", "q1", 1, "none"): "4", ("base", "q2", 1, "none"): "4"})
        with pytest.raises(ValueError, match="not rated on the same"):
            decide_ratings(table, [("sami", "base")])

    def test_mean_rating_by_constitution_turn_and_category_counts_what_is_invalid(self):
        table = rated(
            {
                ("sami", "q1", 1, "desired"): "4",
                ("sami", "q2", 1, "desired"): "7",
                ("sami", "q1", 2, "desired"): "1",
                ("sami", "q2", 2, "desired"): "invalid",
                ("sami", "q3", 1, "desired"): "10",
                ("sami", "q1", 1, "contrasting"): "invalid",
            }
        )
        result = Ratings.validate(judges.ratings(table))
        cells = result.set_index(["constitution", "turn", "category"])
        assert cells.loc[("desired", "1", "writing"), "rating"] == 5.5
        low, high = cells.loc[("desired", "1", "writing"), ["ci_low", "ci_high"]]
        assert 1 <= low < 4 and 7 < high <= 10, "two questions say little"
        assert cells.loc[("desired", "both", "writing"), "rating"] == 4
        assert cells.loc[("desired", "both", "writing"), ["n", "rows", "invalid"]].tolist() == [
            2,
            3,
            1,
        ]
        assert cells.loc[("desired", "both", "overall"), "rating"] == 5.5
        assert cells.loc[("desired", "both", "overall_paper"), "rating"] == 10
        assert pd.isna(cells.loc[("contrasting", "1", "writing"), "rating"])
        assert cells.loc[("contrasting", "1", "writing"), ["n", "invalid"]].tolist() == [0, 1]


CATEGORIES = ("writing", "math")
MODELS = ModelsParameters.model_validate(
    {
        "sources": {"base": "random:0"},
        "student": "base",
        "teacher": "base",
        "under_test": ["base", "sami"],
        "baseline": "base",
    }
)


def parameters(kind="pairwise", answer_format="choice", **changes) -> JudgeParameters:
    engine = {"transformers": {"dtype": "float32", "batch_size": 4}}
    return JudgeParameters.model_validate(
        {"kind": kind, "answer_format": answer_format, "engine": engine, "model": "base"} | changes
    )


@pytest.fixture
def ask(prompts, random_checkpoint, tmp_path):
    """Return a function that lets the random model judge as the node does."""

    def judgements(settings, answers=None, folder="completions") -> pd.DataFrame:
        table = judging.ask_judge(
            answers_of(CATEGORIES, ("base", "sami")) if answers is None else answers,
            questions_of(CATEGORIES),
            constitutions_of(CATEGORIES),
            prompts,
            MODELS,
            settings,
            tmp_path / folder,
            random_checkpoint,
        )
        return Judgements.validate(table)

    return judgements


@pytest.fixture
def asked(monkeypatch):
    """Return the requests that the engine is given; it stops after ``limit`` pieces if told so."""

    class Asked(list):
        limit = None

    # Rows that ended are a piece at once: else a fast machine writes all of them in too few.
    monkeypatch.setattr(transformers_engine, "SECONDS_BETWEEN_PIECES", 0.0)
    seen, stream = Asked(), TransformersEngine.stream

    def watched(self, requests, *, seed):
        seen.extend(requests)
        for number, piece in enumerate(stream(self, requests, seed=seed)):
            if number == seen.limit:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(TransformersEngine, "stream", watched)
    return seen


@pytest.mark.parametrize(
    ("kind", "verdicts", "calls"),
    [
        ("pairwise", {"A", "B", "C"}, 2 * 2 * 5),
        ("constitution", {"A", "B", "C"}, 2 * 2 * 3),
        ("single", {str(rating) for rating in range(1, 11)}, 2 * 2 * 5),
    ],
)
def test_constrained_judge_always_gives_a_verdict(ask, kind, verdicts, calls):
    table = ask(parameters(kind))
    assert len(table) == calls
    assert set(table["verdict"]) <= verdicts
    assert set(table["judge_model"]) == {"base"}
    decided = Verdicts.validate(judging.decide_verdicts(table, MODELS, parameters(kind)))
    assert len(decided) == calls // 2
    assert "invalid" not in set(decided["winner"])


def test_repeats_are_sampled_apart_and_each_is_stored(ask, asked):
    settings = parameters(
        answer_format="text", max_new_tokens=6, temperature=1.0, repeats=3, orders="random"
    )
    table = ask(settings)
    assert len(table) == 3 * 10
    key = ["question_id", "turn", "constitution"]
    assert (table.groupby(key)["sample"].agg(list).map(tuple) == (0, 1, 2)).all()
    assert table.groupby(key)["text"].nunique().max() == 3, "repeats are drawn apart"
    assert {request.sample for request in asked} == {0, 1, 2}
    decided = Verdicts.validate(judging.decide_verdicts(table, MODELS, settings))
    assert len(decided) == 10
    asked.clear()
    pd.testing.assert_frame_equal(ask(settings), table)
    assert asked == []


def test_two_judges_at_a_server_give_verdicts_ratings_and_their_agreement(prompts, tmp_path):
    def answer(sent):
        said = f"{sent.body['messages']} {sent.body.get('seed')}"
        drawn = int(hashlib.sha256(said.encode()).hexdigest(), 16)
        if "Final Response" in said:
            return Completion(f"Final Response: {'AB'[drawn % 2]}", "stop", 5, 5)
        return Completion(f"Rating: [[{1 + drawn % 10}]]", "stop", 5, 5)

    categories = [f"q{number}" for number in range(8)]
    answers = answers_of(categories, ("base", "sami"), asked=[(1, "desired")])
    answers = answers.assign(category="writing")
    tables = (answers, questions_of(categories), constitutions_of(categories), prompts, MODELS)
    with OpenAIServer(answer) as server:
        engine = {"kind": "openai", "openai": {"base_url": server.url, "model": MODEL}}
        settings = JudgeParameters.model_validate(
            {
                "kind": "principle_based_form",
                "orders": "random",
                "temperature": 0.7,
                "repeats": 3,
                "engine": engine,
                "second": {"kind": "single", "engine": engine},
            }
        )
        said = [
            ask(*tables, settings, tmp_path)
            for ask in (judging.ask_judge, judging.ask_second_judge)
        ]
    judgements = Judgements.validate(pd.concat(said, ignore_index=True))
    assert judgements["judge"].value_counts().to_dict() == {
        "principle_based_form": 8 * 3,
        "second_single": 8 * 2,
    }
    verdicts = Verdicts.validate(judging.decide_verdicts(judgements, MODELS, settings))
    assert verdicts["judge"].value_counts().tolist() == [8, 8]
    assert set(Ratings.validate(ratings.make(judgements, settings))["judge"]) == {"second_single"}
    quality = judge_quality.make(verdicts, answers, judgements)
    quality = JudgeQuality.validate(quality).query("category == 'overall'")
    quality = quality.set_index(["judge", "metric"])
    assert quality.loc[("second_single", "kappa"), "reference"] == "principle_based_form"
    assert 0 < quality.loc[("principle_based_form", "self_agreement"), "value"] < 1


def test_text_without_a_verdict_is_kept_and_counted(ask, caplog):
    settings = parameters(answer_format="text", max_new_tokens=6)
    with caplog.at_level(logging.INFO):
        table = ask(settings)
    assert set(table["verdict"]) == {"invalid"}
    assert (table["text"].str.len() > 0).any()
    decided = judging.decide_verdicts(table, MODELS, settings)
    assert set(decided["winner"]) == {"invalid"}
    assert len(decided) == 10
    assert "20 of 20 calls gave no verdict" in caplog.text
    for reason, count in table["finish_reason"].value_counts().items():
        assert f"{count} calls without a verdict ended with {reason!r}" in caplog.text


def test_prompt_beyond_the_judges_context_is_invalid_and_says_why(ask, caplog):
    answers = answers_of(CATEGORIES, ("base", "sami"))
    long = (answers["model"] == "sami") & (answers["question_id"] == "math")
    answers.loc[long & (answers["turn"] == 2), "answer"] = "word " * 2000
    table = ask(parameters(), answers)
    too_long = table["finish_reason"] == "prompt_too_long"
    assert (table["verdict"] == "invalid").equals(too_long)
    assert too_long.equals((table["question_id"] == "math") & (table["turn"] == 2))
    assert (table.loc[too_long, "prompt_tokens"] > 8192).all()
    assert "4 calls without a verdict ended with 'prompt_too_long'" in caplog.text
    winners = judging.decide_verdicts(table, MODELS, parameters())["winner"]
    assert (winners == "invalid").sum() == 2


@pytest.mark.parametrize("settings", [parameters(), parameters("single", "text", max_new_tokens=6)])
def test_killed_judging_goes_on_and_a_second_one_asks_nothing(ask, asked, settings):
    whole = ask(settings, folder="uninterrupted")
    total = len(asked)
    asked.clear()
    asked.limit = 3
    with pytest.raises(KeyboardInterrupt):
        ask(settings)
    asked.clear()
    asked.limit = None
    again = ask(settings)
    assert 0 < len(asked) < total
    pd.testing.assert_frame_equal(again, whole)
    asked.clear()
    pd.testing.assert_frame_equal(ask(settings), whole)
    assert asked == []


def test_changed_answer_is_judged_again_and_the_others_are_not(ask, asked):
    ask(parameters())
    asked.clear()
    answers = answers_of(CATEGORIES, ("base", "sami"))
    changed = (answers["model"] == "sami") & (answers["constitution"] == "contrasting")
    answers.loc[changed, "answer"] = "Something else."
    ask(parameters(), answers)
    assert len(asked) == 2 * 2, "two questions in both orders"


def test_principles_without_checks_leave_the_checklist_silent_beside_a_judge():
    checked = Checked.empty()
    verdicts = judging.judge_answers(checked, MODELS, parameters("constitution"))
    assert len(Verdicts.validate(verdicts)) == 0
    for table in (compliance, compliance_difference):
        assert len(table.Contract.validate(table.make(checked, MODELS))) == 0
    with pytest.raises(InputError, match=r"judge\.kind: .* no principle names a check"):
        judging.judge_answers(checked, MODELS, JudgeParameters())
