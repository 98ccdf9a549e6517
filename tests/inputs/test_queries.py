import pandas as pd
import pytest

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.inputs.queries import queries_from_tables
from sami_pipeline.parameters import QueriesParameters
from sami_pipeline.pipelines.data_ingest.nodes import build_queries
from sami_pipeline.schemas import Queries

TABLE = pd.DataFrame(
    {
        "ask": [" one ", "two", "three", "four", "one", None, "", "five"],
        "kind": ["a", "a", "b", "b", "a", "a", "a", "b"],
        "other": range(8),
    }
)


def parameters(per_category=2, seed=0, **tables) -> QueriesParameters:
    return QueriesParameters.model_validate(
        {"per_category": per_category, "seed": seed, "tables": tables}
    )


def template_file(category: str) -> dict:
    return {
        "category": category,
        "templates": [{"id": "t", "text": "Tell me about {thing}."}],
        "slots": {"thing": [f"{category} {letter}" for letter in "abcd"]},
    }


def test_query_column_is_mapped_and_rows_are_named_after_their_category():
    table = queries_from_tables({"stem": TABLE}, parameters(stem={"query": "ask"}))
    Queries.validate(table)
    assert table["query_id"].tolist() == ["stem-0000", "stem-0001"]
    assert set(table["query"]) <= {"one", "two", "three", "four", "five"}
    assert set(table["source"]) == {"query_table_stem"}


def test_blank_missing_and_repeated_queries_are_not_drawn():
    table = queries_from_tables({"stem": TABLE}, parameters(per_category=5, stem={"query": "ask"}))
    assert sorted(table["query"]) == ["five", "four", "one", "three", "two"]


def test_where_keeps_only_the_rows_with_these_values():
    mapping = {"query": "ask", "where": {"kind": "b"}}
    table = queries_from_tables({"stem": TABLE}, parameters(per_category=3, stem=mapping))
    assert sorted(table["query"]) == ["five", "four", "three"]
    both = {"query": "ask", "where": {"kind": "b", "other": 3}}
    table = queries_from_tables({"stem": TABLE}, parameters(per_category=1, stem=both))
    assert table["query"].tolist() == ["four"]


class TestPublishedSets:
    """The eight sets of arXiv 2410.01704, on small tables of the same columns."""

    TABLES = {  # noqa: RUF012
        "math": pd.DataFrame({"problem": ["Solve x.", "Solve y."], "level": ["1", "2"]}),
        "roleplay": pd.DataFrame(
            {"text": ["User: You are a king. Bot: I am.", "no markers", "User: Be a cat. Bot: Hm"]}
        ),
        "coding": pd.DataFrame({"prompt": ["Write a sort.", "Écrivez un tri, s'il vous plaît."]}),
        "extraction": pd.DataFrame({"post": ["I lost my dog.", "I lost my cat."]}),
        "gsm_hard": pd.DataFrame({"input": ["Ann has 3."]}),
        "reasoning": pd.DataFrame(
            {"turns": [["Who lies? Think step by step, and so on."], ["Who is tall?"]]}
        ),
        "writing": pd.DataFrame(
            {
                "conversation": [
                    [{"role": "user", "content": "A poem?"}, {"role": "assistant", "content": "x"}],
                    [{"role": "user", "content": "An ode?"}],
                    [{"role": "user", "content": "Too late."}],
                ]
            }
        ),
    }

    def drawn(self) -> dict[str, list[str]]:
        settings = {
            "math": {"query": "problem"},
            "roleplay": {"query": "text", "between": ["User:", "Bot:"]},
            "coding": {"query": "prompt", "max_non_ascii": 1},
            "extraction": {"query": "post", "prefix": "Summarise this post: "},
            "gsm_hard": {"query": "input", "category": "coding", "suffix": " As a function."},
            "reasoning": {"query": "turns.0", "before": "Think step by step,"},
            "writing": {"query": "conversation.0.content", "first_rows": 2},
        }
        tables = {name: setting | {"at_most": 3000} for name, setting in settings.items()}
        queries = build_queries(
            {},
            QueriesParameters.model_validate({"templates": False, "tables": tables}),
            **{f"query_table_{name}": table for name, table in self.TABLES.items()},
        )
        Queries.validate(queries)
        return queries.groupby("category")["query"].agg(sorted).to_dict()

    def test_each_is_read_by_configuration_alone(self):
        assert self.drawn() == {
            "math": ["Solve x.", "Solve y."],
            "roleplay": ["Be a cat.", "You are a king."],
            "coding": ["Ann has 3. As a function.", "Write a sort."],
            "extraction": [
                "Summarise this post: I lost my cat.",
                "Summarise this post: I lost my dog.",
            ],
            "reasoning": ["Who is tall?", "Who lies?"],
            "writing": ["A poem?", "An ode?"],
        }

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"query": "text", "between": ["Q:", "A:"], "at_most": 5}, "no query is left"),
            ({"query": "other"}, "column 'other' is missing; it has text"),
            ({"query": "text.0.content", "at_most": 5}, "no query is left"),
            ({"query": "text"}, "set queries.tables.roleplay.at_most"),
        ],
    )
    def test_what_gives_no_queries_names_the_setting(self, setting, message):
        with pytest.raises(InputError, match=message):
            queries_from_tables(
                {"roleplay": self.TABLES["roleplay"]}, parameters(per_category=9, roleplay=setting)
            )

    def test_a_table_whose_name_is_no_category_says_whose_queries_it_has(self):
        with pytest.raises(ValueError, match=r"tables\.gsm_hard\.category: is missing"):
            parameters(gsm_hard={"query": "input"})

    def test_without_templates_or_tables_there_are_no_queries(self):
        with pytest.raises(ValueError, match="templates: false needs tables"):
            QueriesParameters(templates=False)


def test_categories_are_mapped_each_by_its_own_columns():
    other = pd.DataFrame({"question": ["six", "seven"]})
    table = queries_from_tables(
        {"stem": TABLE, "math": other},
        parameters(stem={"query": "ask"}, math={"query": "question"}),
    )
    by_category = table.groupby("category")["query"].agg(set)
    assert by_category["math"] == {"six", "seven"}
    assert table["query_id"].is_unique


def test_same_seed_draws_the_same_whatever_the_order_of_the_rows():
    chosen = [
        queries_from_tables({"stem": table}, parameters(seed=3, stem={"query": "ask"}))
        for table in (TABLE, TABLE.sample(frac=1, random_state=0))
    ]
    pd.testing.assert_frame_equal(*chosen)
    draws = {
        tuple(
            queries_from_tables({"stem": TABLE}, parameters(seed=seed, stem={"query": "ask"}))[
                "query"
            ]
        )
        for seed in range(8)
    }
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("mapping", "column"),
    [({"query": "prompt"}, "'prompt'"), ({"query": "ask", "where": {"topic": "x"}}, "'topic'")],
)
def test_missing_column_is_one_line_that_names_table_and_column(mapping, column):
    with pytest.raises(InputError) as error:
        queries_from_tables({"stem": TABLE}, parameters(stem=mapping))
    message = str(error.value)
    assert "\n" not in message
    for part in ("query_table_stem", column, "ask", "kind"):
        assert part in message


def test_too_few_queries_are_an_error_that_names_both_numbers():
    with pytest.raises(InputError, match=r"query_table_stem: 5 distinct queries, 6 needed"):
        queries_from_tables({"stem": TABLE}, parameters(per_category=6, stem={"query": "ask"}))


def test_no_tables_give_no_queries():
    assert queries_from_tables({}, parameters()) is None


def test_categories_with_a_table_do_not_use_their_templates():
    files = {name: template_file(name) for name in MT_BENCH_CATEGORIES}
    loaders = {name: (lambda content=content: content) for name, content in files.items()}
    queries = build_queries(loaders, parameters(stem={"query": "ask"}), query_table_stem=TABLE)
    Queries.validate(queries)
    assert queries["category"].value_counts().to_dict() == dict.fromkeys(MT_BENCH_CATEGORIES, 2)
    stem = queries[queries["category"] == "stem"]
    assert set(stem["source"]) == {"query_table_stem"}
    assert set(queries[queries["category"] != "stem"]["source"]) == {"t"}


def test_no_template_is_needed_where_every_category_has_a_table():
    tables = {f"query_table_{name}": TABLE for name in MT_BENCH_CATEGORIES}
    mapping = {name: {"query": "ask"} for name in MT_BENCH_CATEGORIES}
    queries = build_queries({}, parameters(**mapping), **tables)
    assert len(queries) == 2 * len(MT_BENCH_CATEGORIES)


@pytest.mark.parametrize("content", [None, ["a list"]], ids=["empty", "list"])
def test_template_file_that_is_no_mapping_is_one_line_that_names_it(content):
    with pytest.raises(InputError, match=r"^[^\n]*broken\.yml[^\n]*$"):
        build_queries({"broken": lambda: content}, parameters())
