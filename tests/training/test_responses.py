import json

import pandas as pd
import pytest

from sami_pipeline.engines import Completion, SamplingParameters
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import Prompt, PromptTemplate
from sami_pipeline.parameters import GenerationParameters
from sami_pipeline.principles.constitutions import sample_constitutions, tabulate_principles
from sami_pipeline.principles.degeneration import is_degenerate
from sami_pipeline.schemas import Generations, ResponseCounts, Responses, TeacherCompliance
from sami_pipeline.training import responses
from sami_pipeline.training.responses import choose_queries

TEMPLATE = PromptTemplate(kind="chat", turn="{query}\n\n{constitution}")


def saying(word: str, principle_id: str) -> dict:
    """Return a principle that asks for a word, with its antithesis and both checks."""
    return {
        "id": principle_id,
        "principle": f"Say {word}.",
        "antithesis": f"Never say {word}.",
        "check": {"name": "contains_any", "phrases": [word]},
        "antithesis_check": {"name": "contains_none", "phrases": [word]},
    }


PRINCIPLES = tabulate_principles(
    {
        "writing.yml": {"category": "writing", "principles": [saying("yes", "yes")]},
        "math.yml": {
            "category": "math",
            "principles": [
                saying("one", "one"),
                saying("two", "two"),
                saying("three", "three"),
                {"id": "polite", "principle": "Be polite.", "antithesis": "Never be polite."},
            ],
        },
    }
)


def query_table(per_category=10, categories=("writing", "math")) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "query_id": f"{category}-{i:04d}",
                "category": category,
                "query": f"What about {category} {i}?",
                "source": "a template",
            }
            for category in categories
            for i in range(per_category)
        ]
    )


def parameters(**changes) -> GenerationParameters:
    return GenerationParameters(
        **({"queries_per_category": 6, "held_out_per_category": 2} | changes)
    )


def generations(*pairs, query_ids=None) -> pd.DataFrame:
    """Return the two responses to each query: ``(text, finish reason)`` under c_0 and under c_1."""
    rows = []
    for number, pair in enumerate(pairs):
        for index, (text, reason) in enumerate(pair):
            rows.append(
                {
                    "query_id": query_ids[number] if query_ids else f"q{number}",
                    "category": "writing",
                    "split": "train",
                    "grid": index // 2,
                    "constitution_index": index,
                    "stances": json.dumps([["yes", ("principle", "antithesis")[index % 2]]]),
                    "response": text,
                    "finish_reason": reason,
                }
            )
    return pd.DataFrame(rows)


class TestChoosingQueries:
    def test_every_category_gives_as_many_as_asked_and_some_are_held_out(self):
        chosen = choose_queries(query_table(), parameters())
        assert chosen.groupby(["category", "split"]).size().to_dict() == {
            ("math", "held_out"): 2,
            ("math", "train"): 4,
            ("writing", "held_out"): 2,
            ("writing", "train"): 4,
        }

    def test_no_held_out_query_is_trained_on(self):
        chosen = choose_queries(query_table(), parameters())
        assert chosen["query_id"].is_unique
        assert chosen["query"].is_unique

    def test_none_may_be_held_out(self):
        chosen = choose_queries(query_table(), parameters(held_out_per_category=0))
        assert set(chosen["split"]) == {"train"}

    def test_seed_decides_which(self):
        one, again, other = (
            choose_queries(query_table(40), parameters(seed=seed)) for seed in (0, 0, 1)
        )
        pd.testing.assert_frame_equal(one, again)
        assert set(one["query_id"]) != set(other["query_id"])

    def test_too_few_queries_are_an_error_that_names_category_and_parameter(self):
        table = pd.concat([query_table(10, ["writing"]), query_table(5, ["math"])])
        message = r"category math has 5, but generation\.queries_per_category is 6"
        with pytest.raises(InputError, match=message):
            choose_queries(table, parameters())

    def test_holding_out_everything_is_an_error(self):
        with pytest.raises(ValueError, match="held_out_per_category: must be below"):
            parameters(queries_per_category=2, held_out_per_category=2)


class TestWriting:
    def test_every_chosen_query_is_asked_under_each_of_its_constitutions(self):
        queries = choose_queries(query_table(), parameters())
        constitutions = sample_constitutions(query_table(), PRINCIPLES, n_constitutions=2, seed=0)
        sampling = SamplingParameters(5)
        rows, requests = responses.generation_requests(queries, constitutions, TEMPLATE, sampling)
        assert len(rows) == len(requests) == 2 * len(queries)
        assert not rows.duplicated(["query_id", "constitution_index"]).any()
        for row, request in zip(rows.itertuples(), requests, strict=True):
            assert request.sampling == sampling
            assert request.prompt == Prompt.from_json(row.prompt)
            assert request.prompt.messages == (("user", f"{row.query}\n\n{row.text}"),)

    def test_completions_stand_beside_the_prompts_they_answer(self):
        queries = choose_queries(query_table(), parameters())
        constitutions = sample_constitutions(query_table(), PRINCIPLES, n_constitutions=2, seed=0)
        rows, requests = responses.generation_requests(
            queries, constitutions, TEMPLATE, SamplingParameters(5)
        )
        echoes = [Completion(r.prompt.messages[0][1], "stop", 7, 3) for r in requests]
        written = responses.with_completions(rows, echoes)
        Generations.validate(written)
        assert written["response"].tolist() == [
            f"{row.query}\n\n{row.text}" for row in written.itertuples()
        ]


LOOP = "la " * 60
STRICT = {"keep_truncated": False, "keep_degenerate": False}
# Every pair has the faults of all the reasons that come after its own.
FAULTS = {
    "failed": (("", "prompt_too_long"), ("", "failed")),
    "prompt_too_long": (("", "prompt_too_long"), ("", "length")),
    "empty": ((" \n", "length"), ("", "length")),
    "same_response": ((LOOP, "length"), (f"\n{LOOP}", "length")),
    "truncated": ((LOOP, "length"), (LOOP + "lo", "length")),
    "degenerate": ((LOOP, "stop"), (LOOP + "lo", "stop")),
    "usable": (("Oh yes.", "stop"), ("Oh no.", "stop")),
}


def pair_rows(*grids: tuple[str, int, str, str], split: str = "train") -> pd.DataFrame:
    """Return the rows of grids: (query, grid, first constitution, second constitution)."""
    return pd.DataFrame(
        [
            {
                "query_id": query,
                "grid": grid,
                "constitution_index": 2 * grid + place,
                "constitution": constitution,
                "split": split,
                "status": "usable",
            }
            for query, grid, *pair in grids
            for place, constitution in enumerate(pair)
        ]
    )


class TestDesiredFirst:
    GRIDS = (
        ("a", 0, "desired", "contrasting"),
        ("a", 1, "contrasting", "contrasting"),
        ("b", 0, "desired", "contrasting"),
        ("b", 1, "desired", "contrasting"),
        ("c", 0, "contrasting", "contrasting"),
    )

    def kept(self, rows, **options) -> list[tuple[str, int]]:
        table = responses.with_desired_first(rows.sample(frac=1, random_state=0), **options)
        return sorted(set(zip(table["query_id"], table["grid"], strict=True)))

    def test_only_grids_that_begin_with_the_desired_constitution_are_kept(self):
        rows = pair_rows(*self.GRIDS)
        assert self.kept(rows, once=False) == [("a", 0), ("b", 0), ("b", 1)]

    def test_the_desired_response_of_a_query_is_imitated_once(self):
        assert len(self.kept(pair_rows(*self.GRIDS), once=True)) == 2

    def test_held_out_grids_all_stay(self):
        rows = pair_rows(*self.GRIDS, split="held_out")
        assert len(responses.with_desired_first(rows, once=True)) == len(rows)


class TestStatus:
    @pytest.mark.parametrize("reason", FAULTS)
    def test_reason_is_the_first_that_applies(self, reason):
        marked = responses.mark_usable(generations(FAULTS[reason]), parameters(**STRICT))
        assert set(marked["status"]) == {reason}

    @pytest.mark.parametrize("reason", FAULTS)
    def test_one_bad_response_makes_its_whole_query_unusable(self, reason):
        bad = FAULTS[reason]
        pair = (bad[0] if reason == "prompt_too_long" else FAULTS["usable"][0], bad[1])
        marked = responses.mark_usable(generations(FAULTS["usable"], pair), parameters(**STRICT))
        assert set(marked[marked["query_id"] == "q0"]["status"]) == {"usable"}
        assert marked[marked["query_id"] == "q1"]["status"].nunique() == 1
        if reason in ("failed", "prompt_too_long", "empty", "truncated", "degenerate"):
            assert marked["status"].iloc[-1] == reason

    def test_reasons_that_are_switched_off_do_not_apply(self):
        lenient = parameters(keep_truncated=True, keep_degenerate=True)
        for reason in ("truncated", "degenerate"):
            marked = responses.mark_usable(generations(FAULTS[reason]), lenient)
            assert set(marked["status"]) == {"usable"}, reason

    @pytest.mark.parametrize(
        ("status", "filters", "responses_"),
        [
            ("filter_word", {"words": ["[insert"]}, ("Dear [insert name]", "No.")),
            ("usable", {"words": ["[insert"]}, ("Dear Ann", "No.")),
            ("too_short", {"minimum_characters": 5}, ("A long answer.", "Yes.")),
            ("usable", {"minimum_characters": 4}, ("A long answer.", "Yes.")),
            ("length_ratio", {"minimum_length_ratio": 3}, ("twelve chars", "fiver")),
            ("usable", {"minimum_length_ratio": 3}, ("fifteen letters", "fiver")),
            # Of the four characters "abcd" one differs from the longer one's beginning "abXd".
            ("too_similar", {"minimum_edit_distance": 0.5}, ("abXd and more", "abcd")),
            ("usable", {"minimum_edit_distance": 0.25}, ("abXd and more", "abcd")),
        ],
    )
    def test_published_filters_leave_out_what_they_are_told_to(self, status, filters, responses_):
        pair = tuple((text, "stop") for text in responses_)
        for rows in (pair, pair[::-1]):
            marked = responses.mark_usable(generations(rows), parameters(filters=filters))
            assert set(marked["status"]) == {status}
            ResponseCounts.validate(responses.count_statuses(marked))

    def test_a_bad_response_spoils_its_own_grid_alone(self):
        good, bad = FAULTS["usable"], FAULTS["empty"]
        marked = responses.mark_usable(generations((*good, *bad)), parameters())
        assert marked["status"].tolist() == ["usable", "usable", "empty", "empty"]
        counts = responses.count_statuses(marked).set_index("status")["queries"]
        assert counts.to_dict() == {"usable": 1, "empty": 1}

    def test_loop_of_these_tests_is_degenerate(self):
        assert is_degenerate(LOOP)
        assert not is_degenerate("Perhaps not.")

    def test_nothing_is_lost_and_counts_add_up(self):
        pairs = [*FAULTS.values(), FAULTS["usable"], FAULTS["empty"]]
        table = generations(*pairs)
        marked = responses.mark_usable(table, parameters(**STRICT))
        pd.testing.assert_frame_equal(marked[table.columns.to_list()], table)
        counts = responses.count_statuses(marked)
        ResponseCounts.validate(counts)
        assert counts["queries"].sum() == len(pairs)
        expected = dict.fromkeys(FAULTS, 1) | {"usable": 2, "empty": 2}
        assert dict(zip(counts["status"], counts["queries"], strict=True)) == expected

    def test_little_that_is_left_is_told(self):
        enough = [FAULTS["usable"]] * 16
        counts = responses.count_statuses(responses.mark_usable(generations(*enough), parameters()))
        assert responses.shortage(counts) == []
        marked = responses.mark_usable(generations(*enough[1:], FAULTS["empty"]), parameters())
        marked.loc[marked["status"] == "empty", "category"] = "stem"
        assert responses.shortage(responses.count_statuses(marked)) == [
            "only 15 grids are left to train on", "none is left to train on of stem",
        ]  # fmt: skip
        marked["split"] = marked["split"].where(marked.index % 4 < 2, "held_out")
        told = responses.shortage(responses.count_statuses(marked))
        assert "only 8 grids are left to train on" in told, "held-out queries train nothing"

    @pytest.mark.parametrize(
        ("reason", "remedy"),
        [
            ("same_response", "raise generation.temperature"),
            ("truncated", "generation.keep_truncated: true"),
            ("degenerate", "generation.keep_degenerate: true"),
            ("prompt_too_long", "generation.max_new_tokens"),
            ("empty", "prompt template"),
            ("failed", "generation.engine"),
        ],
    )
    def test_nothing_that_is_left_is_one_line_with_the_commonest_reasons_remedy(
        self, reason, remedy
    ):
        other = "truncated" if reason == "empty" else "empty"
        pairs = [FAULTS[reason], FAULTS[reason], FAULTS[other]]
        marked = responses.mark_usable(generations(*pairs), parameters(**STRICT))
        counts = responses.count_statuses(marked)
        with pytest.raises(InputError, match=rf"of 3 \({reason}: 2, {other}: 1\); .*{remedy}"):
            responses.shortage(counts)

    def test_order_of_the_rows_changes_nothing(self):
        table = generations(*FAULTS.values())
        shuffled = table.sample(frac=1, random_state=0)
        one = responses.mark_usable(table, parameters(**STRICT))
        other = responses.mark_usable(shuffled, parameters(**STRICT))
        pd.testing.assert_frame_equal(one, other.sort_index())


def prepared(template=TEMPLATE, seed=0) -> pd.DataFrame:
    queries = choose_queries(query_table(), parameters())
    constitutions = sample_constitutions(query_table(), PRINCIPLES, n_constitutions=2, seed=0)
    rows, requests = responses.generation_requests(
        queries, constitutions, TEMPLATE, SamplingParameters(5)
    )
    rows = responses.with_completions(
        rows, [Completion(f"Response {i}", "stop", 7, 3) for i in range(len(requests))]
    )
    rows = responses.mark_usable(rows, parameters())
    return responses.with_training_prompts(rows, PRINCIPLES, template, seed)


def test_answers_begin_as_the_stance_has_it_where_they_are_written_and_trained():
    plain = {"kind": "plain", "turn": "{constitution}: {query}"}
    begins = {"yes": {"principle": " Yes,", "antithesis": " No,"}}
    template = PromptTemplate.model_validate(plain | {"answer_begins": begins})
    table = prepared(template)
    asked, _ = responses.generation_requests(
        query_table(), table[["query_id", "category", "stances", "text"]], template,
        SamplingParameters(5),
    )  # fmt: skip
    for row in [*table.itertuples(), *asked.itertuples()]:
        prompt = getattr(row, "training_prompt", row.prompt)
        begin = begins["yes"].get(dict(json.loads(row.stances)).get("yes"), "")
        text = Prompt.from_json(prompt).text
        assert text.partition(row.query)[2] == begin
    with pytest.raises(InputError, match="answer_begins: 'other' is no principle"):
        prepared(PromptTemplate.model_validate(plain | {"answer_begins": {"other": {}}}))


def topics(prompt: str) -> list[str]:
    """Return what the statements of a prompt are about, in their order."""
    statements = Prompt.from_json(prompt).messages[0][1].split("\n\n")[1]
    return [line.split()[-1] for line in statements.splitlines()]


class TestTrainingPrompts:
    def test_they_hold_the_same_statements_as_the_prompt_of_the_response(self):
        table = prepared()
        Responses.validate(table)
        for row in table.itertuples():
            taken = json.loads(row.stances)
            assert len(topics(row.training_prompt)) == len(taken)
            assert sorted(topics(row.training_prompt)) == sorted(topics(row.prompt))
            text = Prompt.from_json(row.training_prompt).messages[0][1]
            for line in row.text.splitlines():
                assert line.split(". ", 1)[-1] in text

    def test_statements_are_shuffled_alike_for_all_constitutions_of_a_query(self):
        for _, group in prepared().groupby("query_id"):
            orders = {tuple(topics(prompt)) for prompt in group["training_prompt"]}
            assert len(orders) == 1

    def test_order_is_not_the_one_the_response_was_written_under(self):
        table = prepared()
        table = table[table["category"] == "math"]
        differ = [topics(row.training_prompt) != topics(row.prompt) for row in table.itertuples()]
        assert any(differ)

    def test_seed_decides_the_order(self):
        one, again, other = (prepared(seed=seed)["training_prompt"] for seed in (0, 0, 1))
        assert one.equals(again)
        assert not one.equals(other)

    def test_template_may_differ_from_the_one_the_response_was_written_under(self):
        plain = PromptTemplate(kind="plain", turn="Q: {query}\n{constitution}\nA:")
        for row in prepared(template=plain).itertuples():
            text = Prompt.from_json(row.training_prompt).text
            assert text.startswith(f"Q: {row.query}\n")
            assert text.endswith("\nA:")


class TestTeacherCompliance:
    def test_shares_are_those_counted_by_hand(self):
        table = generations(
            (("Yes!", "stop"), ("No.", "stop")),
            (("Yes.", "stop"), ("Oh yes.", "stop")),
            (("Maybe.", "stop"), ("Never.", "stop")),
            (("Yes", "length"), ("Hm.", "stop")),
        )
        compliance = responses.teacher_compliance(table, PRINCIPLES)
        TeacherCompliance.validate(compliance)
        rows = compliance.set_index("stance")
        assert len(rows) == 2
        # "yes" is said in 3 of the 4 responses asked to say it, and in 1 of the 4 asked not to.
        assert rows.loc["principle", ["n_asked", "asked"]].tolist() == [4, 0.75]
        assert rows.loc["principle", ["n_unasked", "unasked"]].tolist() == [4, 0.25]
        assert rows.loc["antithesis", ["n_asked", "asked"]].tolist() == [4, 0.75]
        assert rows.loc["antithesis", ["n_unasked", "unasked"]].tolist() == [4, 0.25]

    def test_response_that_a_server_failed_to_give_is_not_held_against_the_teacher(self):
        table = generations((("Yes!", "stop"), ("", "failed")))
        rows = responses.teacher_compliance(table, PRINCIPLES).set_index("stance")
        assert rows.loc["principle", ["n_asked", "asked"]].tolist() == [1, 1.0]
        assert rows.loc["antithesis", "n_asked"] == 0

    def test_stance_that_nobody_was_asked_for_has_no_share(self):
        table = generations((("Yes!", "stop"), ("No.", "stop")))
        compliance = responses.teacher_compliance(table.iloc[:1], PRINCIPLES)
        TeacherCompliance.validate(compliance)
        rows = compliance.set_index("stance")
        assert rows.loc["principle", "asked"] == 1.0
        assert rows.loc["antithesis", "n_asked"] == 0
        assert pd.isna(rows.loc["antithesis", "asked"])
        assert rows.loc["antithesis", "unasked"] == 0.0

    def test_principles_that_cannot_be_checked_have_no_row(self):
        table = prepared()
        compliance = responses.teacher_compliance(table, PRINCIPLES)
        assert set(compliance["principle"]) == {"yes", "one", "two", "three"}
        math = table[table["category"] == "math"]
        rows = compliance[compliance["category"] == "math"]
        assert (rows.groupby("principle")["n_asked"].sum() == len(math)).all()

    def test_principles_without_any_check_give_an_empty_table_that_the_catalog_accepts(self):
        unverifiable = PRINCIPLES.assign(check="", antithesis_check="")
        compliance = responses.teacher_compliance(prepared(), unverifiable)
        assert compliance.empty
        TeacherCompliance.validate(compliance)
