import json
import random
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.parameters import ConstitutionsParameters
from sami_pipeline.principles.checks import parse_check
from sami_pipeline.principles.constitutions import (
    CONTRASTING,
    DESIRED,
    choose_wordings,
    format_constitution,
    format_statements,
    sample_constitutions,
    tabulate_principles,
    wording,
)
from sami_pipeline.schemas import Constitutions, Principles


def written(*ids: str, category: str = "writing") -> dict:
    """Return a principles file without checks."""
    return {
        "category": category,
        "principles": [
            {"id": name, "principle": f"Do {name}.", "antithesis": f"Avoid {name}."} for name in ids
        ],
    }


def one_check(check: object, antithesis_check: object) -> dict:
    content = written("a")
    content["principles"][0] |= {"check": check, "antithesis_check": antithesis_check}
    return content


THREE = tabulate_principles(
    {"writing.yml": written("a", "b", "c"), "math.yml": written("d", category="math")}
)
QUERIES = pd.DataFrame({"query_id": [f"writing-{i:04d}" for i in range(30)], "category": "writing"})


def sampled(queries=QUERIES, principles=THREE, **changes) -> pd.DataFrame:
    return sample_constitutions(
        queries, principles, **({"n_constitutions": 2, "seed": 0} | changes)
    )


def stances(row) -> dict[str, str]:
    return dict(json.loads(row.stances))


def test_first_is_desired_and_takes_every_principle():
    table = sampled(n_constitutions=3)
    Constitutions.validate(table)
    for row in table[table["constitution_index"] == 0].itertuples():
        assert row.constitution == DESIRED
        assert stances(row) == dict.fromkeys("abc", "principle")
    others = table[table["constitution_index"] > 0]
    assert set(others["constitution"]) == {CONTRASTING}


@pytest.mark.parametrize("contrast", ["sampled", "opposite"])
@pytest.mark.parametrize("n_constitutions", [2, 3, 8])
def test_constitutions_of_a_query_are_distinct_mixtures_of_the_same_principles(
    n_constitutions, contrast
):
    table = sampled(n_constitutions=n_constitutions, contrast=contrast)
    assert len(table) == n_constitutions * len(QUERIES)
    for _, group in table.groupby("query_id"):
        assert group["constitution_index"].tolist() == list(range(n_constitutions))
        taken = [stances(row) for row in group.itertuples()]
        assert all(set(each) == set("abc") for each in taken)
        assert len({tuple(sorted(each.items())) for each in taken}) == n_constitutions
        assert group["text"].nunique() == n_constitutions


def test_every_contrast_is_drawn_sooner_or_later():
    table = sampled(pd.DataFrame({"query_id": map(str, range(200)), "category": "writing"}))
    contrasting = table[table["constitution"] == CONTRASTING]
    seen = {tuple(sorted(stances(row).items())) for row in contrasting.itertuples()}
    assert len(seen) == 2**3 - 1


def test_opposite_contrast_comes_first_and_takes_every_antithesis():
    table = sampled(n_constitutions=3, contrast="opposite")
    for row in table[table["constitution_index"] == 1].itertuples():
        assert stances(row) == dict.fromkeys("abc", "antithesis")


def test_statements_stand_in_the_same_order_in_all_constitutions_of_a_query():
    table = sampled(n_constitutions=4)
    orders = []
    for _, group in table.groupby("query_id"):
        names = {tuple(name for name, _ in json.loads(text)) for text in group["stances"]}
        assert len(names) == 1
        orders.append(names.pop())
    assert len(set(orders)) > 1, "another query may have another order"


def test_text_holds_the_statements_in_the_order_of_the_stances():
    table = sampled(n_constitutions=4)
    for row in table.itertuples():
        verbs = {"principle": "Do", "antithesis": "Avoid"}
        lines = [
            f"{number}. {verbs[stance]} {name}."
            for number, (name, stance) in enumerate(json.loads(row.stances), start=1)
        ]
        assert row.text == "\n".join(lines)


def test_same_seed_gives_the_same_constitutions_whatever_the_order_of_the_rows():
    one = sampled(n_constitutions=3)
    other = sampled(QUERIES.sample(frac=1, random_state=1), n_constitutions=3)
    other = other.sort_values(["query_id", "constitution_index"], ignore_index=True)
    pd.testing.assert_frame_equal(one, other)
    alone = sampled(QUERIES.iloc[[7]], n_constitutions=3)
    pd.testing.assert_frame_equal(alone, one.iloc[21:24].reset_index(drop=True))


def test_another_seed_gives_other_constitutions():
    assert not sampled(seed=0)["text"].equals(sampled(seed=1)["text"])


class TestPairs:
    TWO = tabulate_principles({"writing.yml": written("a", "b")})

    def drawn(self, **changes) -> pd.DataFrame:
        table = sampled(principles=self.TWO, contrast="pairs", **changes)
        Constitutions.validate(table)
        return table

    def pairs(self, table) -> list[tuple[tuple, tuple]]:
        taken = [
            tuple(stance == "principle" for _, stance in sorted(json.loads(text)))
            for text in table["stances"]
        ]
        return list(zip(taken[::2], taken[1::2], strict=True))

    def test_a_query_has_as_many_grids_of_two_different_constitutions_as_asked(self):
        table = self.drawn(pairs_per_query=2)
        indices = table.groupby("query_id")["constitution_index"].agg(tuple)
        assert set(indices) == {(0, 1, 2, 3)}
        assert table["grid"].tolist() == [0, 0, 1, 1] * len(QUERIES)
        pairs = self.pairs(table)
        assert all(first != second for first, second in pairs)
        for one, other in zip(pairs[::2], pairs[1::2], strict=True):
            assert set(one) != set(other)

    def test_all_six_pairs_of_two_principles_are_drawn_about_equally_often(self):
        queries = pd.DataFrame({"query_id": map(str, range(600)), "category": "writing"})
        drawn = self.pairs(sampled(queries, self.TWO, contrast="pairs", pairs_per_query=2))
        counts = Counter(frozenset(pair) for pair in drawn)
        assert len(counts) == 6
        # 200 expected of each; five standard deviations of a binomial are 65.
        assert max(abs(count - 200) for count in counts.values()) < 65

    def test_the_constitution_with_more_principles_stands_first_and_only_all_are_desired(self):
        table = self.drawn(pairs_per_query=6)
        for first, second in self.pairs(table):
            assert sum(first) >= sum(second)
        all_taken = ["antithesis" not in text for text in table["stances"]]
        assert ((table["constitution"] == DESIRED) == all_taken).all()
        assert sum(all_taken) == 3 * len(QUERIES)

    def test_pairs_may_have_to_differ_in_one_principle(self):
        table = self.drawn(pairs_per_query=6, pairs_differ_in="b")
        for _, group in table.groupby(["query_id", "grid"]):
            assert {stances(row)["b"] for row in group.itertuples()} == {"principle", "antithesis"}
        assert len(table) == 4 * 2 * len(QUERIES), "four of the six pairs do"
        with pytest.raises(InputError, match="writing has no principle 'z'; known: a, b"):
            self.drawn(pairs_differ_in="z")
        with pytest.raises(ValueError, match="pairs_differ_in: goes together with contrast: pairs"):
            ConstitutionsParameters(pairs_differ_in="a")

    def test_there_are_no_more_pairs_than_there_are(self):
        assert len(self.drawn(pairs_per_query=50)) == 12 * len(QUERIES)

    def test_other_than_two_constitutions_are_refused(self):
        with pytest.raises(InputError, match=r"n_constitutions: contrast: pairs .* got 3"):
            self.drawn(n_constitutions=3)


REWORDED = tabulate_principles(
    {
        "writing.yml": {
            "category": "writing",
            "principles": [
                {
                    "id": "a",
                    "principle": ["Surely do a.", "Never fail to do a."],
                    "antithesis": "Surely avoid a.",
                    "evaluation": {"principle": "Do a."},
                }
            ],
        }
    }
)


class TestWordings:
    def test_evaluation_takes_its_own_words_and_where_there_are_none_the_trained_ones(self):
        Principles.validate(REWORDED)
        table = sampled(principles=REWORDED, use="evaluation")
        assert set(table["text"]) == {"Do a.", "Surely avoid a."}

    def test_training_draws_among_its_wordings_and_never_takes_those_of_evaluation(self):
        table = sampled(principles=REWORDED)
        desired = table[table["constitution"] == DESIRED]["text"]
        assert set(desired) == {"Surely do a.", "Never fail to do a."}
        assert 5 < (desired == "Surely do a.").sum() < 25

    def test_without_wordings_both_uses_say_the_same(self):
        pd.testing.assert_frame_equal(sampled(), sampled(use="evaluation"))


PUBLISHED = Path(__file__).parents[3] / "shared" / "published"


class TestPublishedFiles:
    CONTENT = {  # noqa: RUF012
        "one.1": {
            "strong": "SURELY do one.",
            "antithesis": "Do NOT do one.",
            "weak": "Do one.",
            "relevant_for": ["math", "stem"],
        },
        "two.1": {
            "strong": "SURELY do two.",
            "antithesis": "Do NOT do two.",
            "weak": "Do two.",
            "relevant_for": ["math"],
        },
    }

    def test_strong_wordings_train_and_weak_ones_evaluate_in_every_category_named(self):
        table = tabulate_principles({"published.json": self.CONTENT})
        Principles.validate(table)
        assert table.groupby("category")["principle"].agg(list).to_dict() == {
            "math": ["one.1", "two.1"],
            "stem": ["one.1"],
        }
        stem = table[table["category"] == "stem"]
        stances = [("one.1", "principle")]
        assert format_constitution(stances, stem) == "SURELY do one."
        assert format_constitution(stances, stem, "evaluation") == "Do one."

    def test_a_part_that_is_missing_is_named(self):
        content = {"one.1": {key: v for key, v in self.CONTENT["one.1"].items() if key != "strong"}}
        content["one.1"]["paraphrases"] = []
        with pytest.raises(InputError, match=r"published\.json: principles\.0\.principle"):
            tabulate_principles({"published.json": content})

    @pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
    def test_every_category_of_the_published_file_has_two_principles_and_four_constitutions(self):
        content = json.loads((PUBLISHED / "mt_bench_constitution.json").read_text("utf-8"))
        table = tabulate_principles({"mt_bench_constitution.json": content})
        Principles.validate(table)
        assert table.groupby("category").size().to_dict() == dict.fromkeys(MT_BENCH_CATEGORIES, 2)
        math = json.loads((PUBLISHED / "math_constitution.json").read_text("utf-8"))
        assert tabulate_principles({"math.json": math})["principle"].tolist() == [
            "math.1",
            "math.2",
        ]


def test_more_constitutions_than_there_are_is_an_error_that_names_the_category():
    queries = pd.DataFrame({"query_id": ["q"], "category": ["math"]})
    with pytest.raises(InputError, match=r"n_constitutions: 3 .*'math'.* 1 principle.* 2 "):
        sampled(queries, n_constitutions=3)
    assert len(sampled(queries, n_constitutions=2)) == 2


@pytest.mark.parametrize("n_constitutions", [1, 0])
def test_fewer_than_two_constitutions_are_an_error(n_constitutions):
    with pytest.raises(InputError, match="n_constitutions: must be at least 2"):
        sampled(n_constitutions=n_constitutions)


def test_category_without_principles_is_an_error_that_names_it():
    queries = pd.DataFrame({"query_id": ["q"], "category": ["stem"]})
    with pytest.raises(InputError, match="principles: none for category stem"):
        sampled(queries)


def test_single_statement_stands_alone_without_a_number():
    rows = THREE[THREE["category"] == "math"]
    assert format_constitution([("d", "principle")], rows) == "Do d."
    assert format_constitution([("d", "antithesis")], rows) == "Avoid d."


def test_generator_shuffles_the_statements_alike_for_every_stance():
    rows = THREE[THREE["category"] == "writing"]
    orders = set()
    for seed in range(20):
        both = []
        for stance in ("principle", "antithesis"):
            taken = [(name, stance) for name in "abc"]
            words = choose_wordings(wording(rows), None)
            text = format_statements(taken, words, random.Random(seed))
            assert [line[:2] for line in text.splitlines()] == ["1.", "2.", "3."]
            both.append(re.findall(r"(\w)\.$", text, flags=re.MULTILINE))
        assert both[0] == both[1]
        assert sorted(both[0]) == list("abc")
        orders.add(tuple(both[0]))
    assert len(orders) > 3


BAD_FILES = {
    "unknown category": (written("a", category="poetry"), ["category", "poetry", "writing"]),
    "no antithesis": (
        {"category": "writing", "principles": [{"id": "a", "principle": "Do."}]},
        ["principles.0.antithesis"],
    ),
    "blank antithesis": (
        {
            "category": "writing",
            "principles": [{"id": "a", "principle": "Do.", "antithesis": ""}],
        },
        ["principles.0.antithesis"],
    ),
    "unknown check": (
        one_check({"name": "no_such_check"}, {"name": "no_digit"}),
        ["principles.0.check", "no_such_check", "bullet_list"],
    ),
    "unknown parameter of a check": (
        one_check({"name": "contains_digit"}, {"name": "no_digit", "minimum": 3}),
        ["principles.0.antithesis_check", "minimum", "no_digit"],
    ),
    "check without a counterpart": (
        one_check({"name": "contains_digit"}, None),
        ["principles.0", "antithesis_check"],
    ),
    "duplicate id": (written("a", "b", "a"), ["principles", "'a'"]),
    "unknown field": (written("a") | {"author": "me"}, ["author"]),
    "no principles": ({"category": "writing", "principles": []}, ["principles"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_gives_one_line_that_names_file_and_field(name):
    content, named = BAD_FILES[name]
    with pytest.raises(InputError) as error:
        tabulate_principles({"fine.yml": written("z", category="stem"), "bad.yml": content})
    message = str(error.value)
    assert "\n" not in message
    assert "bad.yml" in message
    assert "fine.yml" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "content", [None, [written("a")], "writing"], ids=["empty", "list", "text"]
)
def test_file_that_is_no_mapping_gives_one_line_that_names_it_and_leaves_no_field_blank(content):
    with pytest.raises(InputError) as error:
        tabulate_principles({"fine.yml": written("z", category="stem"), "bad.yml": content})
    message = str(error.value)
    assert "\n" not in message
    assert "bad.yml" in message
    assert ": :" not in message, "where the field belongs, nothing stands"


def test_two_files_for_one_category_are_an_error_that_names_both():
    with pytest.raises(InputError, match=r"^[^\n]*b\.yml: category: 'writing'[^\n]*a\.yml[^\n]*$"):
        tabulate_principles({"a.yml": written("a"), "b.yml": written("b")})


def test_no_file_is_an_error():
    with pytest.raises(InputError, match="principles: no file"):
        tabulate_principles({})


def test_table_does_not_depend_on_the_order_of_the_files(principle_files, principles):
    backwards = dict(reversed(principle_files.items()))
    pd.testing.assert_frame_equal(tabulate_principles(backwards), principles)


# One text for each kind of answer that the shipped principles ask for.
TEXTS = (
    "Dear neighbour,\n\nthe fence fell over last night.",
    "Once upon a time there was a fence.",
    "Hello, the dough is ready.",
    "The answer is 4.",
    "1. Measure the flour.\n2. Add the water.\n3. Knead.",
    "```python\nprint('dough')\n```",
    "The yeast is alive, therefore the dough rises.",
    "The dough rises because the yeast is alive.",
    "However, the dough did not rise.",
)
# Answers that ignore what is asked: they follow neither side.
PLAIN = (
    "",
    "The baker kneads the dough.",
    "The baker kneads the dough and lets it rest. " * 9,
    "Shall we knead the dough?",
    "- Measure the flour.\n- Add the water.",
)


def test_shipped_principles_cover_every_category(principles):
    Principles.validate(principles)
    assert set(principles["category"]) == set(MT_BENCH_CATEGORIES)


def test_shipped_principles_use_at_least_five_kinds_of_check(principles):
    checks = [*principles["check"], *principles["antithesis_check"]]
    kinds = {json.loads(check)["name"] for check in checks if check}
    assert len(kinds) >= 5


def test_shipped_checks_can_be_passed_and_not_by_an_answer_that_ignores_them(principles):
    verifiable = principles[principles["check"] != ""]
    assert len(verifiable) > 0
    for row in verifiable.itertuples():
        where = f"{row.category}: {row.principle}"
        assert row.check != row.antithesis_check, where
        checks = [parse_check(json.loads(text)) for text in (row.check, row.antithesis_check)]
        passed = [[check.passes(text) for check in checks] for text in TEXTS]
        assert any(follows for follows, _ in passed), where
        assert any(opposes for _, opposes in passed), where
        assert not any(follows and opposes for follows, opposes in passed), where
        assert not any(check.passes(text) for check in checks for text in PLAIN), where


def test_shipped_principles_give_two_constitutions_for_every_category(principles):
    queries = pd.DataFrame({"query_id": MT_BENCH_CATEGORIES, "category": MT_BENCH_CATEGORIES})
    table = sampled(queries, principles)
    assert len(table) == 2 * len(MT_BENCH_CATEGORIES)
    assert table["text"].str.strip().ne("").all()
