"""Checkpoints and files of the Hugging Face Hub, by name where a path could stand.

Fetched once into the Hub's own cache, weights as safetensors alone, and code only if it is trusted; without a network,
what is there already is taken.
"""

from __future__ import annotations

import re
from pathlib import Path

from hwsearch.errors import DataError, TeacherError

CHECKPOINT = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]  # neither pickles nor code
TWICE = ["consolidated*", "original/*"]  # the same weights in another form
FILE = re.compile(r"hf://datasets/([^/]+/[^/@]+)/(.+)")


def checkpoint(name: str, code: bool = False) -> Path:
    """The folder of a checkpoint: a folder on disk, or what the Hub has under `owner/name`.

    Args:
        name: of either.
        code: fetch its code as well.

    Raises:
        TeacherError: neither is there.
    """
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return path.resolve()
    try:
        from huggingface_hub import snapshot_download

        return Path(str(snapshot_download(name, allow_patterns=CHECKPOINT + ["*.py"] * code, ignore_patterns=TWICE)))
    except Exception as error:  # of the network, of the Hub, of the disk: a dozen kinds
        raise TeacherError(
            f"there is no folder {name}, and the Hub gave no checkpoint of that name: {_reason(error)}"
        ) from error


def data_file(name: str) -> Path:
    """A file or folder on disk, or what `hf://datasets/OWNER/NAME/FILE` names.

    Raises:
        DataError: the Hub does not give it.
    """
    if not name.startswith("hf:"):
        return Path(name).absolute()  # what a link is called says how to read it
    found = FILE.fullmatch(name)
    if found is None:
        raise DataError(f"a file of the Hub is hf://datasets/OWNER/NAME/FILE; got {name}")
    try:
        from huggingface_hub import hf_hub_download

        return Path(str(hf_hub_download(found[1], found[2], repo_type="dataset")))
    except Exception as error:
        raise DataError(f"the Hub gave no {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
