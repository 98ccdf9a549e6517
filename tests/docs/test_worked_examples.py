"""What the docs tell a reader to do works, and does what they say."""

import pandas as pd
import pytest


def read(project, path: str) -> pd.DataFrame:
    return pd.read_parquet(project.folder / "data" / f"{path}.parquet")


def test_a_model_that_was_added_is_compared(worked_example):
    project = worked_example("add_model")
    win_rates = read(project, "08_reporting/other_model/mt_bench/win_rates")
    assert set(zip(win_rates["model"], win_rates["opponent"], strict=True)) == {("other", "base")}
    answers = read(project, "07_model_output/other_model/mt_bench/answers")
    by_model = {name: table["answer"].tolist() for name, table in answers.groupby("model")}
    assert set(by_model) == {"base", "other"}
    assert by_model["base"] != by_model["other"], "two models, not one under two names"


@pytest.mark.parametrize("table", ["win_rates", "compliance", "compliance_difference"])
def test_a_category_that_was_added_is_in_the_results(worked_example, table):
    results = read(worked_example("add_category"), f"08_reporting/test/mt_bench/{table}")
    own = results[results["category"] == "cooking"]
    assert len(own) > 0
    assert (own["n"] > 0).all()
    assert results["category"].nunique() == 9 + 2, "nine categories and two overalls"


def test_a_category_that_was_added_is_trained_on_and_asked(worked_example):
    project = worked_example("add_category")
    responses = read(project, "05_model_input/test/mt_bench/responses")
    assert "cooking" in set(responses["category"])
    answers = read(project, "07_model_output/test/mt_bench/answers")
    assert set(answers.loc[answers["category"] == "cooking", "question_id"]) == {"1001"}


def test_a_principle_that_was_added_is_measured(worked_example):
    table = read(worked_example("add_judge"), "08_reporting/judged/mt_bench/teacher_compliance")
    added = table[table["principle"] == "gives_an_example"]
    assert set(added["category"]) == {"stem"}
    assert (added["n_asked"] + added["n_unasked"] > 0).all()


def test_a_check_that_was_added_is_measured_and_says_what_it_asks(worked_example):
    project = worked_example("add_check")
    table = read(project, "08_reporting/questions/mt_bench/teacher_compliance")
    added = table[table["principle"] == "questions"].set_index("stance")
    assert set(added["category"]) == {"humanities"}
    assert added["check"].to_dict() == {
        "principle": "at least 2 questions",
        "antithesis": "fewer than 2 questions",
    }
    assert (added["n_asked"] + added["n_unasked"] > 0).all()


def test_a_model_that_judges_stands_beside_the_checklist(worked_example):
    win_rates = read(worked_example("add_judge"), "08_reporting/judged/mt_bench/win_rates")
    assert set(win_rates["judge"]) == {"checklist", "constitution"}


def test_a_kind_of_judge_that_was_added_judges_every_pair_in_both_orders(worked_example):
    project = worked_example("add_judge")
    judgements = read(project, "07_model_output/plain/mt_bench/judgements")
    assert set(judgements["judge"]) == {"plain"}
    assert set(judgements["order"]) == {"model_first", "opponent_first"}
    assert judgements["prompt"].str.contains("easier to understand").all()
    win_rates = read(project, "08_reporting/plain/mt_bench/win_rates")
    assert set(win_rates["judge"]) == {"checklist", "plain"}


def test_queries_of_a_data_set_that_was_added_take_the_place_of_templates(worked_example):
    project = worked_example("add_data_set")
    queries = read(project, "03_primary/letters/mt_bench/queries")
    writing = queries[queries["category"] == "writing"]
    assert set(writing["source"]) == {"query_table_writing"}
    assert len(writing) == 4
    assert "Describe the moon in one line." not in set(writing["query"]), "where: kind: letter"
    assert queries["category"].nunique() == 8


def test_own_queries_and_principles_are_taught_and_measured(worked_example):
    project = worked_example("align")
    principles = read(project, "03_primary/letters/align/principles")
    assert set(principles["category"]) == {"delivery", "refund"}
    trained = read(project, "03_primary/letters/align/queries")
    asked = read(project, "03_primary/letters/align/questions")
    assert len(trained) + len(asked) == 10
    assert not set(trained["query"]) & set(asked["question"])
    for run, judges in (("letters", {"checklist"}), ("polite", {"constitution"})):
        win_rates = read(project, f"08_reporting/{run}/align/win_rates")
        assert set(win_rates["judge"]) == judges
        assert {*win_rates["model"], *win_rates["opponent"]} == {"sami", "base"}
        assert (project.folder / f"data/08_reporting/{run}/align/report.html").is_file()


def test_a_table_of_results_that_was_added_is_made_and_shown(worked_example):
    project = worked_example("add_table")
    table = read(project, "08_reporting/with_sentences/mt_bench/sentences")
    assert set(table["model"]) == {"base", "sami", "dpo"}
    assert set(table["constitution"]) == {"desired", "contrasting", "none"}
    assert (table["n"] == 8).all(), "one question of each category"
    report = project.folder / "data/08_reporting/with_sentences/mt_bench/report.html"
    assert 'id="table-sentences"' in report.read_text("utf-8")


def test_an_experiment_that_was_added_runs_to_its_report(worked_example):
    project = worked_example("add_experiment")
    rates = read(project, "08_reporting/poems/haiku/win_rates")
    assert set(rates["category"]) == {"haiku", "overall"}
    assert (project.folder / "data/08_reporting/poems/haiku/report.html").is_file()


def test_a_baseline_that_was_added_is_trained_on_its_part_and_compared(worked_example):
    project = worked_example("add_baseline")
    rates = read(project, "08_reporting/part/align/win_rates")
    assert {"base", "sft_part", "sft_dpo"} <= {*rates["model"], *rates["opponent"]}
    steps = read(project, "06_models/part/align/history").groupby("model").size()
    assert steps["sft_part"] < steps["sft"] == steps["sft_dpo"]


def test_an_engine_that_was_added_writes_the_responses(worked_example):
    written = read(worked_example("add_engine"), "04_feature/echo/align/generations")
    assert (written["response"].str.split().str.len() == 5).all()
