import json

from examples import HOSTILE, QUESTIONS

from sami_pipeline.principles.constitutions import sample_constitutions, tabulate_principles
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.reporting.answers import judged_answers, math_answers


def text_of(part) -> str:
    return "\n".join(text for _, text in part["blocks"])


def test_every_answer_of_every_model_is_there_with_its_statements_and_verdicts(mt_bench_tables):
    shown = judged_answers(mt_bench_tables, "base", None)
    assert [question["id"] for question in shown["questions"]] == list(QUESTIONS)
    answers, statements, verdicts = [], 0, 0
    for question in shown["questions"]:
        assert [setting["title"] for setting in question["settings"]] == [
            "Turn 1, under the desired constitution",
            "Turn 1, under the contrasting constitution",
            "Turn 2, under the desired constitution",
        ]
        for setting in question["settings"]:
            verdicts += len(setting["verdicts"])
            for answer in setting["answers"]:
                answers.append(text_of(answer["texts"][0]))
                statements += len(answer["statements"])
    assert sorted(answers) == sorted(mt_bench_tables["answers"]["answer"])
    assert statements == len(mt_bench_tables["checked"])
    assert verdicts == len(mt_bench_tables["verdicts"])


def test_outcomes_and_followed_statements_are_those_of_the_tables(mt_bench_tables):
    shown = judged_answers(mt_bench_tables, "base", None)
    setting = shown["questions"][0]["settings"][0]
    names = {"model": "win", "opponent": "loss", "tie": "tie", "invalid": "invalid"}
    verdicts = mt_bench_tables["verdicts"]
    expected = verdicts[
        (verdicts["question_id"] == "81")
        & (verdicts["turn"] == 1)
        & (verdicts["constitution"] == "desired")
    ]
    assert [(v["judge"], v["model"], v["opponent"], v["outcome"]) for v in setting["verdicts"]] == [
        (row.judge, row.model, row.opponent, names[row.winner]) for row in expected.itertuples()
    ]
    checked = mt_bench_tables["checked"].query(
        "model == 'dpo' and question_id == '81' and turn == 1 and constitution == 'desired'"
    )
    (dpo,) = (answer for answer in setting["answers"] if answer["model"] == "dpo")
    assert [one["followed"] for one in dpo["statements"]] == checked["passed"].tolist()
    assert [one["evidence"] for one in dpo["statements"]] == checked["evidence"].tolist()
    told = "it begins “Dear reader,”; “Dear” at the beginning asked"
    assert [one["evidence"] for one in dpo["statements"]] == [told]


def test_constitution_of_a_setting_is_the_one_that_was_asked_under(mt_bench_tables):
    shown = judged_answers(mt_bench_tables, "base", None)
    texts = mt_bench_tables["question_constitutions"].set_index(["query_id", "constitution"])[
        "text"
    ]
    for question in shown["questions"]:
        assert [setting["constitution"] for setting in question["settings"]] == [
            texts[question["id"], name] for name in ("desired", "contrasting", "desired")
        ]


def test_statements_are_shown_in_the_wording_that_was_drawn_and_not_in_the_first(mt_bench_tables):
    """Two principles of three wordings each: the second ones begin like the first."""
    words = [f"Be {{}}{end}." for end in ("", ". Always", " and brief")]
    written = {
        category: {
            "category": category,
            "principles": [
                {
                    "id": name,
                    "principle": f"Train {name}.",
                    "antithesis": f"Do not train {name}.",
                    "evaluation": {
                        "principle": [text.format(name) for text in words],
                        "antithesis": [f"Never be {name}.", f"Never be {name}. Never."],
                    },
                    "check": {"name": "maximum_words", "words": 9},
                    "antithesis_check": {"name": "minimum_words", "words": 9},
                }
                for name in ("short", "plain")
            ],
        }
        for category in QUESTIONS.values()
    }
    principles = tabulate_principles(written)
    asked = sample_constitutions(
        mt_bench_tables["question_constitutions"][["query_id", "category"]].drop_duplicates(),
        principles, n_constitutions=2, seed=1, contrast="opposite", use="evaluation",
    )  # fmt: skip
    key = ["query_id", "constitution"]
    given = mt_bench_tables["answers"].drop(columns="stances")
    given = given.rename(columns={"question_id": "query_id"}).merge(
        asked[[*key, "stances"]], on=key
    )
    given = given.rename(columns={"query_id": "question_id"})
    tables = mt_bench_tables | {
        "principles": principles, "question_constitutions": asked, "answers": given,
        "checked": check_answers(given, principles),
    }  # fmt: skip
    texts, seen = asked.set_index(key)["text"], set()
    for question in judged_answers(tables, "base", None)["questions"]:
        for setting in question["settings"]:
            name = "contrasting" if "contrasting" in setting["title"] else "desired"
            assert setting["constitution"] == texts[question["id"], name]
            lines = setting["constitution"].splitlines()
            for answer in setting["answers"]:
                shown = [one["text"] for one in answer["statements"]]
                assert sorted(shown) == sorted(line.split(". ", 1)[1] for line in lines)
                seen.update(shown)
    assert len(seen) > 4, "more than the first wordings are drawn"


def test_what_a_judge_said_stands_at_its_own_verdict_only(mt_bench_tables):
    shown = judged_answers(mt_bench_tables, "base", None)
    said = [
        (question["id"], setting["title"], verdict["judge"], judgement["text"])
        for question in shown["questions"]
        for setting in question["settings"]
        for verdict in setting["verdicts"]
        for judgement in verdict["judgements"]
    ]
    title = "Turn 1, under the desired constitution"
    texts = mt_bench_tables["judgements"]["text"]
    assert said == [("81", title, "pairwise", text) for text in texts]


def test_questions_beyond_the_limit_are_left_out_and_counted(mt_bench_tables, math_tables):
    assert judged_answers(mt_bench_tables, "base", 1)["total"] == len(QUESTIONS)
    shown = math_answers(math_tables, "base", 2)
    assert (len(shown["questions"]), shown["total"]) == (2, 3)


def test_every_attempt_at_a_problem_is_there_with_what_was_read_and_whether_it_is_right(
    math_tables,
):
    shown = math_answers(math_tables, "base", None)
    first = shown["questions"][0]["settings"][0]
    sft = first["answers"][1]
    assert [(text["title"], text["right"], text["facts"][0]) for text in sft["texts"]] == [
        ("Greedy attempt", True, "answer 2 (marked)"),
        ("Attempt 1", True, "answer 2 (marked)"),
        ("Attempt 2", True, "answer 2 (marked)"),
    ]
    base = first["answers"][0]["texts"][0]
    assert text_of(base).startswith(HOSTILE)
    assert not base["right"]
    outcomes = [q["settings"][0]["verdicts"][0]["outcome"] for q in shown["questions"]]
    assert outcomes == ["win", "tie", "tie"]


def test_answers_are_plain_json_for_empty_tables_too(mt_bench_tables, math_tables):
    for tables, browser in ((mt_bench_tables, judged_answers), (math_tables, math_answers)):
        json.dumps(browser(tables, "base", None), allow_nan=False)
        empty = {name: table.iloc[:0] for name, table in tables.items()}
        assert browser(empty, "base", None)["questions"] == []


def test_examples_are_the_first_the_middle_and_the_last_by_margin(mt_bench_tables):
    shown = judged_answers(mt_bench_tables, "base", None)
    assert shown["matches"][shown["pair"]] == ["sami", "base"]
    margins = {}
    for question in shown["questions"]:
        (verdict,) = (
            verdict for verdict in question["settings"][0]["verdicts"]
            if (verdict["model"], verdict["opponent"], verdict["judge"])
            == ("sami", "base", "checklist")
        )  # fmt: skip
        margins[question["id"]] = verdict["margin"]
    chosen = [example["question"] for example in shown["examples"]]
    best, worst = max(margins.values()), min(margins.values())
    assert margins[chosen[0]] == best and margins[chosen[-1]] == worst
    assert chosen[0] == next(each for each, margin in margins.items() if margin == best)
    assert len(set(chosen)) == len(chosen) <= 3
    assert "sorted by how far sami is ahead of base" in shown["rule"]


def test_settings_say_what_they_can_be_filtered_by(mt_bench_tables):
    cut = mt_bench_tables["answers"].assign(finish_reason="length")
    shown = judged_answers({**mt_bench_tables, "answers": cut}, "base", None)
    assert shown["constitutions"] == ["desired", "contrasting"] and shown["turns"] == ["1", "2"]
    setting = shown["questions"][0]["settings"][1]
    assert (setting["turn"], setting["under"]) == ("1", "contrasting")
    assert set(setting["principles"]) <= set(shown["principles"]) and setting["principles"]
    assert all(answer["faults"] == ["is cut off"] for answer in setting["answers"])
