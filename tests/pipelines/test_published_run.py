"""What arXiv 2410.01704 published, through our statistics; where its files are."""

import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.schemas import LengthControlled, WinRates

PUBLISHED = Path(__file__).parents[3] / "shared" / "published"


def test_without_a_clone_the_remedy_is_one_line(kedro_run, run_name):
    finished = kedro_run("--params", f"run_name={run_name()}", pipeline="published")
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: published.folder: is missing; clone ")


def test_a_folder_without_the_files_is_named_with_what_is_missing(kedro_run, run_name, tmp_path):
    finished = kedro_run(
        "--params", f"run_name={run_name()},published.folder={tmp_path}", pipeline="published"
    )
    assert finished.returncode == 1
    assert "SFT-temperature-0.0.json is not there" in finished.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
class TestPublished:
    @pytest.fixture(scope="class")
    def reporting(self, project_folder, kedro_run, run_name) -> Path:
        name = run_name()
        finished: subprocess.CompletedProcess[str] = kedro_run(
            "--params", f"run_name={name},published.folder={PUBLISHED}", pipeline="published"
        )
        assert finished.returncode == 0, finished.stderr[-2000:]
        return project_folder / "data" / "08_reporting" / name / "published"

    @pytest.mark.parametrize(
        ("model", "rate", "counts"),
        [("sft_sami", 0.569, [43, 5, 32]), ("sft_dpo", 0.575, [43, 6, 31])],
    )
    def test_no_rate_over_sft_can_be_told_from_even(self, reporting, model, rate, counts):
        table = WinRates.validate(pd.read_parquet(reporting / "win_rates.parquet"))
        row = table[(table["model"] == model) & (table["category"] == "overall")].iloc[0]
        assert row["adjusted_win_rate"] == pytest.approx(rate, abs=0.0005)
        assert row[["wins", "ties", "losses"]].tolist() == counts
        assert row["n"] == 80
        assert row["adjusted_ci_low"] == pytest.approx(0.46, abs=0.01)
        assert row["adjusted_ci_high"] == pytest.approx(0.68, abs=0.01)
        assert row["p_holm"] > 0.05

    def test_length_decides_little_though_sami_writes_much_more(self, reporting):
        lengths = pd.read_parquet(reporting / "degeneration.parquet")
        overall = lengths[(lengths["category"] == "overall") & (lengths["turn"] == "1")]
        tokens = overall.set_index("model")["mean_tokens"].round().to_dict()
        assert tokens == {"sft": 157, "sft_dpo": 179, "sft_sami": 255}
        table = LengthControlled.validate(pd.read_parquet(reporting / "length_controlled.parquet"))
        assert ((table["ci_low"] < 0.5) & (table["ci_high"] > 0.5)).all()

    def test_report_says_so_in_words_and_shows_every_answer(self, reporting):
        page = unescape((reporting / "report.html").read_text("utf-8"))
        for model in ("sft_sami", "sft_dpo"):
            assert f"between {model} and sft no difference can be seen" in page
        assert "as published (arXiv 2410.01704)" in page
        answers = pd.read_parquet(
            str(reporting / "answers.parquet").replace("08_reporting", "07_model_output")
        )
        assert len(answers) == 240
        for answer in answers["answer"].iloc[::60]:
            assert answer[:40].splitlines()[0] in page
