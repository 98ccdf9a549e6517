"""The report in a real browser: drawn, filtered, and nothing that a model wrote runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import WatchedPage
from examples import HOSTILE, QUESTIONS

PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
MARKS = {
    "outcome": ".scatterlayer path.point",
    "figure_win_rates": ".scatterlayer path.point",
    "figure_compliance": ".scatterlayer path.point",
    "figure_questions": ".scatterlayer path.point",
    "figure_lengths": ".scatterlayer path.point",
    "figure_accuracy": ".errorbar path",
    "figure_attempts": ".scatterlayer path.point",
}


@pytest.fixture(scope="session")
def reports(tmp_path_factory, page_of, mt_bench_tables, math_tables) -> dict[str, Path]:
    """The reports of the two experiments as files."""
    folder = tmp_path_factory.mktemp("reports")
    # As of enough questions to call something a difference: the page marks it.
    rates = mt_bench_tables["win_rates"]
    low = rates["adjusted_ci_low"].where(rates["adjusted_win_rate"] < 1, 0.6)
    rates = rates.assign(n=40, p_holm=0.01, adjusted_ci_low=low)
    mt_bench_tables = {**mt_bench_tables, "win_rates": rates}
    for experiment, tables in (("mt_bench", mt_bench_tables), ("math", math_tables)):
        (folder / f"{experiment}.html").write_text(page_of(experiment, tables), "utf-8")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def open_report(open_page, reports) -> Callable[..., WatchedPage]:
    """Return a function that opens an experiment's report and waits until its figures are drawn."""

    def open_it(experiment: str, **options) -> WatchedPage:
        watched = open_page(reports[experiment].as_uri(), **options)
        for place in watched.page.locator(".plot").all():
            place.locator(".main-svg").first.wait_for(state="attached")
        return watched

    return open_it


@pytest.mark.parametrize("experiment", ["mt_bench", "math"])
def test_what_models_and_judges_wrote_is_shown_literally_and_never_runs(open_report, experiment):
    watched = open_report(experiment)
    page = watched.page
    written = page.locator("#shown .written").all_text_contents()
    assert any(text.startswith(HOSTILE) for text in written)
    assert page.locator("#shown img, #shown b, #shown script").count() == 0
    assert page.title() != "ran"
    assert watched.outside == set()
    assert watched.errors == []


def test_what_the_judge_said_opens_at_its_verdict(open_report):
    page = open_report("mt_bench").page
    said = page.locator("#shown > details").first.locator(".verdicts details")
    assert said.count() == 2
    said.first.locator("summary").click()
    assert said.first.locator(".written").is_visible()
    assert "said in order model_first [[A]]" in said.first.locator(".written").text_content()


def test_a_script_of_a_model_would_not_run_even_as_an_element(open_report):
    """The last line of defence: the page's policy, should escaping ever fail."""
    watched = open_report("mt_bench")
    page = watched.page
    page.evaluate(
        """text => {
            document.body.insertAdjacentHTML("beforeend", text);
            const script = document.createElement("script");
            script.textContent = "document.title = 'ran'";
            document.body.append(script);
        }""",
        HOSTILE,
    )
    page.wait_for_timeout(200)
    assert page.title() != "ran"
    assert watched.outside == set()
    assert len(watched.errors) >= 2, "the policy reports what it stops"
    assert all("Content Security Policy" in error for error in watched.errors), watched.errors
    watched.errors.clear()


@pytest.mark.parametrize("experiment", ["mt_bench", "math"])
def test_names_and_words_are_explained_where_they_are_used(open_report, experiment):
    page = open_report(experiment).page
    page.get_by_text("What the names and words mean").click()
    words = dict(zip(page.locator("#words-used dt").all_text_contents(),
                     page.locator("#words-used dd").all_text_contents(), strict=True))  # fmt: skip
    assert words["base"].startswith("not trained here")
    assert "starts from base" in words["sft"]
    assert words["sft_sami"].startswith("SAMI:") and "starts from sft" in words["sft_sami"]
    assert ("steerability" in words) == (experiment == "mt_bench")


@pytest.mark.parametrize("experiment", ["mt_bench", "math"])
def test_every_figure_has_marks(open_report, experiment):
    page = open_report(experiment).page
    names = page.eval_on_selector_all(".plot", "places => places.map(p => p.dataset.figure)")
    assert len(names) == {"mt_bench": 5, "math": 3}[experiment]
    for name in names:
        assert page.locator(f".plot[data-figure={name}] {MARKS[name]}").count() > 0, name


def shown_questions(page) -> list[str]:
    return page.eval_on_selector_all("#question option", "options => options.map(o => o.value)")


def test_arrow_keys_and_buttons_go_through_the_questions_and_stop_at_the_ends(open_report):
    page = open_report("mt_bench").page
    ids = list(QUESTIONS)
    assert page.input_value("#question") == ids[0]
    assert page.locator("#previous").is_disabled()
    for expected in (ids[1], ids[2], ids[3], ids[3]):
        page.keyboard.press("ArrowRight")
        assert page.input_value("#question") == expected
    assert page.locator("#next").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#position").text_content() == "Question 3 of 4"
    assert f"Question {ids[2]}, turn 1?" in page.locator("#shown").text_content()
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.input_value("#question") == ids[3]


def test_arrow_keys_in_a_select_stay_there(open_report):
    page = open_report("mt_bench").page
    page.locator("#filter-result").focus()
    page.keyboard.press("ArrowRight")
    assert page.input_value("#question") == next(iter(QUESTIONS))


def test_everything_that_can_be_used_is_reached_by_tab_and_shows_its_focus(open_report):
    page = open_report("mt_bench").page
    reached = set()
    for _ in range(300):
        page.keyboard.press("Tab")
        identity, outline = page.evaluate(
            """() => {
                const focused = document.activeElement;
                return [focused.id, getComputedStyle(focused).outlineStyle];
            }"""
        )
        if identity:
            reached.add(identity)
            assert outline == "solid", identity
    # "previous" is disabled at the first question.
    names = ("category", "match", "judge", "result", "constitution", "turn", "principle", "fault")
    controls = {f"filter-{name}" for name in names} | {"order", "search", "question"}
    assert controls | {"next"} <= reached


def test_filters_leave_the_questions_whose_verdicts_are_such(open_report, mt_bench_tables):
    page = open_report("mt_bench").page
    verdicts = mt_bench_tables["verdicts"]
    for index, (model, opponent) in enumerate((("sami", "base"), ("dpo", "base"), ("sami", "dpo"))):
        page.select_option("#filter-match", str(index))
        for judge in ("checklist", "pairwise"):
            page.select_option("#filter-judge", judge)
            for outcome, winner in {"win": "model", "loss": "opponent", "tie": "tie"}.items():
                page.select_option("#filter-result", outcome)
                rows = verdicts[
                    (verdicts["model"] == model)
                    & (verdicts["opponent"] == opponent)
                    & (verdicts["judge"] == judge)
                    & (verdicts["winner"] == winner)
                ]
                expected = [name for name in QUESTIONS if name in set(rows["question_id"])]
                assert shown_questions(page) == expected, (model, opponent, judge, outcome)
    page.select_option("#filter-result", "")
    page.select_option("#filter-judge", "")
    page.select_option("#filter-category", "math")
    assert shown_questions(page) == [name for name, kind in QUESTIONS.items() if kind == "math"]


def test_a_filter_without_any_question_says_so_and_recovers(open_report):
    page = open_report("mt_bench").page
    page.select_option("#filter-result", "invalid")
    assert shown_questions(page) == []
    assert page.locator("#position").text_content() == "No question fits these filters."
    assert page.locator("#next").is_disabled() and page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowRight")
    page.select_option("#filter-result", "")
    assert len(shown_questions(page)) == len(QUESTIONS)


def test_math_shows_each_attempt_with_its_answer_and_whether_it_is_right(open_report):
    page = open_report("math").page
    sft = page.locator("#shown .answer").nth(1)
    assert sft.locator("summary").all_text_contents() == [
        "✓ right Greedy attempt: answer 2 (marked)",
        "✓ right Attempt 1: answer 2 (marked)",
        "✓ right Attempt 2: answer 2 (marked)",
    ]
    page.select_option("#filter-result", "win")
    assert shown_questions(page) == ["sums-test-1"]


@pytest.mark.parametrize("experiment", ["mt_bench", "math"])
def test_on_a_phone_the_page_is_no_wider_than_the_screen(open_report, experiment):
    page = open_report(experiment, **PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = page.eval_on_selector_all(
        "#answers :is(select, input):not([hidden] *), #answers button",
        "controls => controls.map(c => c.getBoundingClientRect().height)",
    )
    assert min(height for height in heights if height) >= 44, "large enough for a finger"


def contrast(page, selector: str) -> float:
    """Return the contrast ratio of an element's text against the page, as WCAG 2 defines it."""
    return page.eval_on_selector(
        selector,
        """element => {
            const luminance = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                const share = part / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            }).reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") {
                behind = behind.parentElement;
            }
            const style = getComputedStyle(element);
            const text = luminance(element.ownerSVGElement ? style.fill : style.color);
            const paper = luminance(getComputedStyle(behind).backgroundColor);
            return (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
        }""",
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(open_report, scheme):
    page = open_report("mt_bench", color_scheme=scheme).page
    for selector in (
        "#cards .note", "#cards .split", "#cards .verdict", "#limits", "nav a", ".note",
        ".interval", ".above .number", "#shown .written",
        "#shown .win", "#shown .wrong", "#shown .facts", "#next", ".plot .xtick text",
        ".plot .legendtext",
    ):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector


def test_figures_follow_when_the_scheme_changes(open_report):
    page = open_report("mt_bench", color_scheme="light").page
    colour = "tick => getComputedStyle(tick).fill"
    light = page.eval_on_selector(".plot .xtick text", colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        f"light => ({colour})(document.querySelector('.plot .xtick text')) !== light", arg=light
    )
    assert contrast(page, ".plot .xtick text") >= 4.5


def test_an_address_leads_to_its_question(open_report, open_page):
    page = open_report("mt_bench").page
    page.keyboard.press("ArrowRight")
    again = open_page(page.url).page
    assert again.input_value("#question") == list(QUESTIONS)[1]


def titles(page) -> list[str]:
    return page.locator("#shown > details > summary").all_text_contents()


def test_filters_of_what_was_asked_leave_the_settings_that_are_such(open_report):
    page = open_report("mt_bench").page
    assert len(titles(page)) == 3
    page.select_option("#filter-constitution", "contrasting")
    assert titles(page) == ["Turn 1, under the contrasting constitution"]
    page.select_option("#filter-constitution", "")
    page.select_option("#filter-turn", "2")
    assert titles(page) == ["Turn 2, under the desired constitution"]
    page.select_option("#filter-turn", "")
    page.select_option("#filter-principle", "dear or once")
    assert shown_questions(page) == ["81"], "writing alone has it"
    page.select_option("#filter-principle", "")
    page.select_option("#filter-fault", "is cut off")
    assert shown_questions(page) == []
    page.select_option("#filter-fault", "none")
    assert len(shown_questions(page)) == len(QUESTIONS)


def test_a_pair_shows_its_two_models_and_all_models_all(open_report):
    page = open_report("mt_bench").page
    first = page.locator("#shown > details").first.locator(".answer h4")
    assert first.all_text_contents() == ["base", "sami"]
    page.select_option("#filter-match", label="sami against dpo")
    assert first.all_text_contents() == ["sami", "dpo"]
    page.select_option("#filter-match", "all")
    assert first.all_text_contents() == ["base", "sami", "dpo"]


def test_search_finds_and_marks_what_a_shown_model_wrote_as_text(open_report):
    page = open_report("mt_bench").page
    page.fill("#search", "as fully as it can be said")
    assert len(shown_questions(page)) == len(QUESTIONS)
    assert page.locator("#shown mark").first.text_content() == "as fully as it can be said"
    page.fill("#search", "dear reader")
    assert shown_questions(page) == [], "dpo wrote it, which is not shown"
    page.select_option("#filter-match", "all")
    assert len(shown_questions(page)) == len(QUESTIONS)
    page.fill("#search", "<script>")
    assert page.locator("#shown mark").first.text_content() == "<script>"
    assert page.locator("#shown script").count() == 0


def test_questions_are_sorted_by_margin(open_report, mt_bench_tables):
    page = open_report("mt_bench").page
    page.select_option("#filter-constitution", "desired")
    page.select_option("#filter-turn", "1")
    page.select_option("#filter-judge", "checklist")
    verdicts = mt_bench_tables["verdicts"].query(
        "model == 'sami' and opponent == 'base' and judge == 'checklist' and turn == 1 "
        "and constitution == 'desired'"
    ).set_index("question_id")  # fmt: skip
    margins = verdicts["model_score"] - verdicts["opponent_score"]
    for order, sign in (("ahead", -1), ("behind", 1)):
        page.select_option("#order", order)
        expected = sorted(QUESTIONS, key=lambda name: sign * margins[name])
        assert shown_questions(page) == expected


def test_a_link_opens_the_same_answers_with_the_same_filters(open_report, open_page):
    page = open_report("mt_bench").page
    page.select_option("#filter-match", label="sami against dpo")
    page.fill("#search", "turn")
    page.keyboard.press("Tab")
    page.select_option("#question", "101")
    link = page.locator("#shown > details").nth(1).get_by_text("Link to these answers")
    again = open_page(page.url.partition("#")[0] + link.get_attribute("href")).page
    assert again.input_value("#question") == "101"
    assert again.input_value("#search") == "turn"
    assert titles(again) == ["Turn 1, under the contrasting constitution"]
    assert again.locator("#shown .answer h4").all_text_contents() == ["sami", "dpo"]
    box = again.locator("#answers").bounding_box()
    assert box["y"] < 100, "the answers are in sight"


def test_an_example_leads_to_its_answers(open_report):
    page = open_report("mt_bench").page
    page.select_option("#filter-category", "math")
    example = page.locator(".example").first
    assert example.locator(".answer h4").all_text_contents() == ["base", "sami"]
    example.get_by_text("Open it among all answers").click()
    title = example.locator("h4").first.text_content()
    page.wait_for_function("() => document.querySelector('#filter-category').value === ''")
    assert f"question {page.input_value('#question')} (" in title


def test_code_and_lists_are_set_as_such_and_keep_their_characters(open_report):
    page = open_report("mt_bench").page
    sami = page.locator("#shown .answer").nth(1).locator(".written")
    items = sami.locator(".item").all_text_contents()
    assert items[:2] == [
        "1. First this.", "2. Then that, as well and as fully as it can be said.",
    ]  # fmt: skip


@pytest.mark.parametrize("experiment", ["mt_bench", "math"])
def test_on_a_phone_each_panel_of_a_figure_fits_the_screen_and_nothing_is_cut_off(
    open_report, experiment
):
    page = open_report(experiment, **PHONE).page
    for plot in page.locator(".plot").all():
        assert plot.evaluate("plot => plot.scrollWidth") <= 390
        for panel in plot.locator(".cartesianlayer .subplot .plot").all():
            box = panel.bounding_box()
            if box:
                assert box["height"] <= 800 and box["x"] >= 0 and box["x"] + box["width"] <= 391
        for text in plot.locator(".ytick text, .annotation-text, .legendtext").all():
            box = text.bounding_box()
            if box:
                assert box["x"] >= 0 and box["x"] + box["width"] <= 391, text.text_content()


def test_printed_it_is_dark_on_white_without_what_only_a_screen_can_do(open_report):
    page = open_report("mt_bench", color_scheme="dark").page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("#filters").is_visible() and not page.locator("nav").is_visible()
    assert page.locator("#cards .big").first.is_visible()
    colours = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colours) == "rgb(255, 255, 255)"
    assert contrast(page, ".plot .xtick text") >= 4.5
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(colours) != "rgb(255, 255, 255)"
