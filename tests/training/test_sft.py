"""SFT in SAMI's loop: what TRL's SFTTrainer computes, whatever the micro-batches."""

import pytest
import torch
from test_baselines import make_model
from trl import SFTConfig, SFTTrainer
from trl_oracle import (
    arguments,
    check_gradients,
    check_history,
    check_weights,
    first_gradients,
    train_by_trl,
)

from sami_pipeline.core import Grid, SamiTrainingConfig
from sami_pipeline.core.sft import SftObjective
from sami_pipeline.core.training import batch_schedule
from sami_pipeline.training.baselines.sft import SftParameters, demonstrations, train_sft

CONFIG = SamiTrainingConfig(
    batch_size=4, grids_per_micro_batch=2, epochs=2, learning_rate=1e-3, adamw_epsilon=1e-5,
    warmup_steps=2, schedule="cosine", compute_dtype="float32", seed=3,
)  # fmt: skip
# A mean of means would be another loss: the longest response has 40 times the tokens of the
# shortest.
LENGTHS = (1, 40, 3, 25, 7, 2, 33, 12)


def make_grids() -> list[Grid]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 250, (length,), generator=generator).tolist()

    return [Grid([ids(3 + n), ids(5)], [ids(length), ids(4)]) for n, length in enumerate(LENGTHS)]


def row_of(grid: Grid) -> dict[str, list[int]]:
    """Return the desired response of a query as TRL takes it."""
    prompt, response = grid.prompt_ids[0], grid.response_ids[0]
    return {
        "input_ids": [*prompt, *response],
        "completion_mask": [0] * len(prompt) + [1] * len(response),
    }


@pytest.mark.parametrize("together", [1, 2, 4])
def test_losses_gradients_and_weights_are_those_of_trl(together, tmp_path):
    config = CONFIG.replaced(grids_per_micro_batch=together)
    grids, steps = make_grids(), batch_schedule(len(LENGTHS), config)
    ours, theirs = make_model(), make_model()
    settings = SFTConfig(
        **arguments(config, len(grids), 1, tmp_path / "trl"), completion_only_loss=True
    )
    rows = [row_of(grids[number]) for step in steps for number in step]
    log, expected = train_by_trl(SFTTrainer, settings, config, theirs, rows)
    history = train_sft(
        ours.model, ours.tokenizer, grids, config, SftParameters(), tmp_path / "ours"
    )
    check_history(history, log, {})
    examples = demonstrations(grids, SftParameters())
    check_gradients(first_gradients(make_model().model, examples, config, SftObjective()), expected)
    check_weights(ours.model, theirs.model, make_model().model)


def test_a_grid_of_several_responses_is_refused():
    with pytest.raises(ValueError, match=r"grids\[1\]: 1 prompts and 2 responses; SFT imitates"):
        SftObjective().check([Grid([[1]], [[2]]), Grid([[1]], [[2], [3]])])
