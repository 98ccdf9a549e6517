"""A finished-or-absent model checkpoint in Hugging Face layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset, DatasetError

from sami_pipeline import files
from sami_pipeline.models.checkpoints import PROVENANCE_FILE, Checkpoint, LoadedModel, missing_part
from sami_pipeline.models.prompts import ChatParameters

if TYPE_CHECKING:
    from kedro_datasets._typing import PlotlyPreview

_TRUST, _CHAT = "trust_remote_code", "chat"
# Weights, configuration and tokenizer; nothing that could hold a pickle.
_LINKED_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


class CheckpointDataset(AbstractDataset[Checkpoint | LoadedModel, Checkpoint]):
    """Saves a model with its tokenizer, and loads the folder as a ``Checkpoint``.

    The folder is written under a temporary name and renamed at the end, so it exists only when
    it is whole: after a kill ``--only-missing-outputs`` runs the node again. Weights are
    safetensors; nothing is pickled. A ``Checkpoint`` that is saved is linked file by file (copied
    where the file system cannot), so importing a large model costs no disk.

    Example:
        ::

            "{experiment}.{model}_checkpoint":
              type: sami_pipeline.datasets.CheckpointDataset
              filepath: data/06_models/{experiment}/{model}
              history: "{model}_history.parquet"
    """

    def __init__(
        self,
        *,
        filepath: str,
        history: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Take the folder's path, relative to the project, and Kedro's metadata.

        Args:
            filepath: the model folder.
            history: the name, next to the folder, of the table of the training that made it; its
                preview has the loss from there.
            metadata: as kedro-viz reads it.
        """
        self._folder = Path(filepath)
        self._history = None if history is None else self._folder.parent / history
        self.metadata = metadata

    def save(self, data: Checkpoint | LoadedModel) -> None:
        """Write the folder whole, replacing an earlier one."""
        with files.whole_folder(self._folder) as partial:
            self._write(data, partial)

    def _write(self, data: Checkpoint | LoadedModel, temporary: Path) -> None:
        trusted = _runs_code_of_its_own(data)
        if isinstance(data, Checkpoint):
            linked = (*_LINKED_SUFFIXES, ".py") if trusted else _LINKED_SUFFIXES
            for source in sorted(data.folder.iterdir()):
                if source.is_file() and source.suffix in linked:
                    files.link_or_copy(source.resolve(), temporary / source.name)
            provenance: dict[str, Any] = {"source": str(data.folder)}
        else:
            data.model.save_pretrained(temporary, safe_serialization=True)
            data.tokenizer.save_pretrained(temporary)
            provenance = dict(data.provenance)
        provenance = _earlier_provenance(data) or provenance
        # Written here alone: a folder from elsewhere can't trust itself.
        provenance.pop(_TRUST, None)
        if trusted:
            provenance[_TRUST] = True
        provenance.pop(_CHAT, None)
        if chat := data.chat.given():
            provenance[_CHAT] = chat
        (temporary / PROVENANCE_FILE).unlink(missing_ok=True)
        (temporary / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
        fault = missing_part(temporary)
        if fault:
            raise DatasetError(f"model folder {self._folder}: not saved, {fault}")

    def load(self) -> Checkpoint:
        """Return the folder, once it is known to be whole."""
        files.recover_folder(self._folder)
        fault = missing_part(self._folder)
        if fault:
            raise DatasetError(
                f"model folder {self._folder}: {fault}; run the node that makes it, or remove it"
            )
        checkpoint = Checkpoint(self._folder)
        provenance = checkpoint.provenance
        return replace(
            checkpoint,
            trust_remote_code=provenance.get(_TRUST) is True,
            chat=ChatParameters.model_validate(provenance.get(_CHAT, {})),
        )

    def preview(self) -> PlotlyPreview:
        """Return a figure of the model's size and loss for kedro-viz; no weights are loaded."""
        import pandas as pd

        from sami_pipeline import figures

        checkpoint = self.load()
        trained = self._history is not None and self._history.is_file()
        figure = figures.checkpoint(
            self._folder.name,
            checkpoint.parameters_by_module(),
            checkpoint.size_bytes,
            pd.read_parquet(self._history) if trained else None,
        )
        return json.loads(figure.to_json())

    def _exists(self) -> bool:
        files.recover_folder(self._folder)
        return missing_part(self._folder) is None

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


def _runs_code_of_its_own(model: Checkpoint | LoadedModel) -> bool:
    """Return whether a model needs Python code that was trusted when it was imported."""
    if isinstance(model, Checkpoint):
        return model.trust_remote_code
    return type(model.model).__module__.partition(".")[0] == "transformers_modules"


def _earlier_provenance(model: Checkpoint | LoadedModel) -> dict[str, Any]:
    """Return where an imported folder came from, if it is one that was saved here."""
    provenance = model.provenance if isinstance(model, Checkpoint) else {}
    return dict(provenance) if isinstance(provenance, dict) else {}
