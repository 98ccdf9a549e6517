import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from examples import HOSTILE


class Elements(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self.scripts and self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=["mt_bench", "math"])
def page(request, page_of, mt_bench_tables, math_tables) -> Elements:
    tables = {"mt_bench": mt_bench_tables, "math": math_tables}[request.param]
    return Elements(page_of(request.param, tables))


def test_only_the_two_scripts_that_the_policy_names_by_hash_can_run(page):
    (policy,) = (
        meta["content"]
        for meta in page.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    running = [text for attributes, text in page.scripts if attributes.get("type") is None]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert re.search(r"script-src ([^;]+)", policy).group(1).split() == [
        f"'sha256-{value}'" for value in hashes
    ]
    assert len(running) == 2
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_nothing_a_model_wrote_becomes_an_element(page):
    assert page.named("img") == page.named("b") == []
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]


def test_nothing_is_fetched(page):
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert addresses
    # A link to the page of all runs is followed by hand alone.
    fetched = [address for address in addresses if address != "../../index.html"]
    assert all(address.startswith(("#", "data:")) for address in fetched), fetched


def test_model_text_arrives_unchanged_in_the_data(page):
    (text,) = (text for attributes, text in page.scripts if attributes.get("id") == "answers-data")
    assert "<" not in text
    found = json.loads(text)
    texts = [
        "\n".join(text for _, text in part["blocks"])
        for question in found["questions"]
        for setting in question["settings"]
        for answer in setting["answers"]
        for part in answer["texts"]
    ]
    assert any(HOSTILE in text for text in texts)


def test_page_is_built_for_keyboards_and_readers(page):
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == len(page.named("main")) == 1
    assert [attributes for attributes in page.named("button") if attributes["type"] == "button"]
    fields = len(page.named("select")) + len(page.named("input"))
    assert len(page.named("label")) == fields == 11
    for attributes in page.named("div"):
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]


def test_ids_are_unique_and_links_lead_to_them(page):
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.named("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "data:text/csv", "../../index.html")) for link in links)


def test_every_table_can_be_saved_as_it_is(page, request, mt_bench_tables, math_tables):
    saved = {link["download"]: link["href"] for link in page.named("a") if link.get("download")}
    tables = mt_bench_tables if "win_rates.csv" in saved else math_tables
    assert {"accuracy.csv", "accuracy_difference.csv"} <= set(saved) or "steerability.csv" in saved
    for name, address in saved.items():
        text = base64.b64decode(address.partition("base64,")[2]).decode()
        assert text == tables[name.removesuffix(".csv")].to_csv(index=False)


def test_report_begins_with_three_cards_the_split_by_principle_and_what_speaks_against(
    page_of, mt_bench_tables
):
    written = page_of("mt_bench", mt_bench_tables)
    assert written.count('<article class="card') == 3
    assert "no difference seen" in written or "too little was asked to say" in written
    assert "Before you believe this" in written
    assert written.index('id="cards"') < written.index('data-figure="outcome"')
    assert written.index('data-figure="outcome"') < written.index('id="limits"')
    assert written.index('id="limits"') < written.index('id="table-win_rates"')


def test_empty_tables_give_a_whole_page_that_says_so(page_of, mt_bench_tables, math_tables):
    for experiment, tables in (("mt_bench", mt_bench_tables), ("math", math_tables)):
        empty = {name: table.iloc[:0] for name, table in tables.items()}
        written = page_of(experiment, empty)
        assert "There are no results" in written
        assert "This table is empty." in written
        assert written.rstrip().endswith("</html>")


def test_a_table_that_is_not_there_is_passed_over(page_of, mt_bench_tables):
    optional = ("judge_quality", "length_controlled", "judgements")
    kept = {name: table for name, table in mt_bench_tables.items() if name not in optional}
    written = page_of("mt_bench", kept)
    assert "No judge was compared with a reference" in written
    assert 'id="table-length_controlled"' not in written
