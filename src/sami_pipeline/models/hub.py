"""The model hub: what it has, what lies in its cache here, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

from sami_pipeline.errors import InputError, one_line

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


class HubError(InputError):
    """A model can't be had from the hub; the message says why and what to do."""


def cached(location: str, *, trust_remote_code: bool = False) -> Path | None:
    """Return the folder of a model in the hub's cache, or None where it is not there as a whole.

    Args:
        location: OWNER/NAME or OWNER/NAME@REVISION.
        trust_remote_code: its Python code is wanted too.
    """
    try:
        return _snapshot(location, trust_remote_code, local_files_only=True)
    except Exception:  # the hub's client has one for each way in which something can be missing
        return None


def fetch(location: str, *, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model, fetched into the hub's cache if need be.

    Raises:
        HubError: one line with the reason and the remedy.
    """
    try:
        return _snapshot(location, trust_remote_code)
    except Exception as error:  # as above
        raise _told(location, error) from error


def check(location: str, *, trust_remote_code: bool = False) -> None:
    """Check that a model can be had, without fetching it.

    Raises:
        HubError: it is not in the cache, and the hub is out of reach, has none of this name, or
            does not give it to everybody.
    """
    if cached(location, trust_remote_code=trust_remote_code) is not None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    repository, _, revision = location.partition("@")
    try:
        if is_offline_mode():
            raise OfflineModeIsEnabled
        HfApi().auth_check(repository)
        HfApi().model_info(repository, revision=revision or "main", timeout=20)
    except Exception as error:  # as above
        raise _told(location, error) from error


def _snapshot(location: str, trust_remote_code: bool, *, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = location.partition("@")
    patterns = [*_PATTERNS, *(["*.py"] if trust_remote_code else [])]
    return Path(
        snapshot_download(
            repository, revision=revision or "main", allow_patterns=patterns,
            local_files_only=local_files_only,
        )
    )  # fmt: skip


def _told(location: str, error: Exception) -> HubError:
    from huggingface_hub import errors

    repository, _, revision = location.partition("@")
    if isinstance(error, errors.GatedRepoError):
        what = "is gated: its owner wants to know who takes it"
        remedy = "accept its terms on its page, then log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"has no revision {revision or 'main'!r}"
        remedy = "correct what stands behind the @"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "is not on the hub, or private"
        remedy = "correct OWNER/NAME, or log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        what = "is not in the hub's cache here, and HF_HUB_OFFLINE forbids to fetch it"
        remedy = f"fetch it first where there is a network (hf download {repository}), or unset it"
    else:
        what = "is not in the hub's cache here, and the hub can't be reached"
        reason = one_line(str(error))[:200]
        what += f" ({reason})" if reason else ""
        remedy = "look after the network, or give a folder: folder:PATH"
    return HubError(f"hub:{location}: {what}; {remedy}")
