"""Images of one's own: what image classifiers are distilled on.

They come as a folder with a folder of images for each class, as one folder without classes, or as a table with a column
of paths (beside it or absolute) or of the images themselves, as `datasets` keeps them. An image is known by a hash of
its file, so that the same one is never in two splits.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import platformdirs

from hwsearch.distill.data import Corpus
from hwsearch.distill.rows import class_of, split_rows
from hwsearch.distill.table import table
from hwsearch.errors import DataError
from hwsearch.files import read_as, read_or_drop, whole, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

# Of images, by their path: bytes, nanoseconds since 1970 at which anything of the file last changed (when it was
# written, an archive restores), and a hash.
Hashes = dict[str, tuple[int, int, str]]
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HEX = 15  # digits of a hash: as many as a positive int64 holds


def labelled_images(
    data: Path, held_out: Path | None, column: str, label_column: str, names: Mapping[str, int]
) -> tuple[Corpus, dict[str, Path]]:
    """Images with a class each, by their hashes, and where each of them lies; where one has no class, it is the
    teacher's own. Splits and arguments as of `rows.labelled_texts`.

    Raises:
        DataError: what cannot be read or is no image, a class that the teacher does not know, or too few images.
    """
    places: dict[str, Path] = {}

    def rows(source: Path) -> Iterator[tuple[str, int]]:
        unlabelled = bool(held_out) and source == data
        listed = _listed(source, column, label_column, names, unlabelled)
        with _hashes(source) as known:
            for row, (path, label) in enumerate(listed, start=1):
                found = _hash(path, known)
                places[found] = path
                yield found, class_of(label, names, source, row)

    return split_rows(data, held_out, rows), places


def open_image(path: Path) -> Image:
    """An image in colour.

    Raises:
        DataError: it is none, or damaged.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut at 255
                upright = Image.fromarray((np.asarray(upright) // 256).clip(0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow tells of bad files
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"cannot read the image {path}: {reason}; repair it or leave it out") from error


def _listed(
    source: Path, column: str, label_column: str, names: Iterable[str], unlabelled: bool
) -> Iterator[tuple[Path, Any]]:
    """Paths of the images of a folder or table, and what is said to be their class."""
    if source.is_dir() and not (source / "state.json").is_file() and not (source / "dataset_dict.json").is_file():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in KINDS)
        if not files:
            raise DataError(f"{source} holds no images ({', '.join(KINDS)}), nor folders of them")
        for path in files:
            yield path, None if path.parent == source else path.relative_to(source).parts[0]
        return
    for cell, label in table(source, column, label_column, known=names, unlabelled=unlabelled):
        yield _path_of(cell, source), label


def _path_of(cell: Any, source: Path) -> Path:
    """Where the image of a cell lies: its path, or its bytes put into a file of their own."""
    if isinstance(cell, dict):  # as `datasets` keeps it
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        return source.parent / cell
    if not isinstance(cell, bytes):
        raise DataError(f"{source}: a cell of an image holds its path or its bytes; got {type(cell).__name__}")
    path = platformdirs.user_cache_path("hwsearch") / "images" / hashlib.sha256(cell).hexdigest()
    if not path.is_file():
        with whole(path) as temporary:
            temporary.write_bytes(cell)
    return path


@contextmanager
def _hashes(source: Path) -> Iterator[Hashes]:
    """Hashes of the images of a folder or table as an earlier process has left them; what is new is kept in the end."""
    name = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:24]
    path = platformdirs.user_cache_path("hwsearch") / "images" / f"{name}.json"
    known = read_or_drop(path, lambda path: read_as(path, dict[str, tuple[int, int, str]])) or {}
    before = dict(known)
    yield known
    if known != before:
        write_text(path, msgspec.json.encode(known).decode())


def _hash(path: Path, known: Hashes) -> str:
    """Of an image's file, once it is seen to be one; `known` is told."""
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}") from error
    size, changed, found = known.get(str(path), (0, 0, ""))
    if found and (size, changed) == (facts.st_size, facts.st_ctime_ns):
        return found
    found = _hash_of(path)
    known[str(path)] = (facts.st_size, facts.st_ctime_ns, found)
    return found


def _hash_of(path: Path) -> str:
    """The same, read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images are read by Pillow: pip install 'hwsearch[images]'") from error
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image: {getattr(error, 'strerror', None) or 'not in a known format'}") from error
    return hashlib.sha256(content).hexdigest()[:HEX]
