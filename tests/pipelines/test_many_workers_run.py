"""A whole experiment whose SAMI model two workers train, beside one that a single process does."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

MEASURED = ["tokens_per_second", "peak_memory_bytes"]


@pytest.mark.stress
def test_two_workers_make_the_model_and_the_tables_that_one_process_makes(
    kedro_run, run_name, project_folder
):
    names = {}
    for count in (1, 2):
        names[count] = run_name()
        finished = kedro_run(
            "--env", "test", "--params",
            f"run_name={names[count]},mt_bench.training.launch.num_processes={count}",
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = (
        project_folder / "data" / "06_models" / name / "mt_bench" for name in names.values()
    )
    assert {path.name for path in (two / "sami").iterdir()} == {
        path.name for path in (one / "sami").iterdir()
    }
    weights, expected = (load_file(run / "sami" / "model.safetensors") for run in (two, one))
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    for table in ("sami_history", "sami_held_out"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(two / f"{table}.parquet").drop(columns=MEASURED, errors="ignore"),
            pd.read_parquet(one / f"{table}.parquet").drop(columns=MEASURED, errors="ignore"),
            rtol=1e-4,
            atol=1e-5,
        )
