"""An image classifier gives each image a class. Rows are the hash of an image's file, as a number, and the class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hwsearch.distill.data import Corpus
from hwsearch.distill.families import Image
from hwsearch.distill.images import labelled_images, open_image
from hwsearch.distill.objectives.objective import Axes, Inputs, Plain, products
from hwsearch.distill.rows import places
from hwsearch.errors import DataError, TeacherError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import BaseImageProcessor, PreTrainedModel

    from hwsearch.distill.job import TaskSpec

KEPT_MIB = 1024  # of images as pixels, which need not be read again


class ImageClasses(Plain):
    """A class for the whole image.

    Args:
        processor: of the teacher: how it wants its images cut.
        names: its classes, by name.
        image: what it sees.
    """

    axes: ClassVar[Mapping[str, Axes]] = {"pixel_values": ("batch",)}

    def __init__(self, processor: BaseImageProcessor, names: Mapping[str, int], image: Image) -> None:
        self.processor, self.names, self.image = processor, names, image
        self._paths: dict[int, Path] = {}
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def read(self, spec: TaskSpec) -> Corpus:
        """Images with a class each."""
        if not spec.data:
            raise DataError(
                "an image classifier is distilled on images of one's own: --data FOLDER with a folder of images for "
                "each class, or FILE.csv with a column of paths"
            )
        column = "image" if spec.text_column == "text" else spec.text_column
        held_out = Path(spec.held_out) if spec.held_out else None
        corpus, paths = labelled_images(Path(spec.data), held_out, column, spec.label_column, self.names)
        self._paths = {int(found, 16): path for found, path in paths.items()}
        return corpus

    def draw(self, texts: Any, labels: Any, count: int, sequence: int, seed: int | None) -> NDArray[Any]:  # noqa: ARG002
        """Each image a row."""
        drawn = places(len(texts), count, seed)
        return np.array([[int(texts[place], 16), labels[place]] for place in drawn], np.int64)

    def labels(self, chunks: Any) -> Any:
        """The class of each image."""
        return chunks[:, -1:]

    def inputs(self, chunks: Tensor) -> Inputs:
        """Pixels, [rows, channels, height, width], float32, as the teacher's processor scales them."""
        pixels = torch.from_numpy(np.stack([self._cut(number) for number in chunks[:, 0].tolist()])).float()
        processor: Any = self.processor
        if processor.do_rescale:
            pixels = pixels * processor.rescale_factor
        if processor.do_normalize:
            mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
            pixels = (pixels - mean) / std
        return {"pixel_values": pixels.to(chunks.device)}

    def blank(self, batch: int, sequence: int) -> Inputs:  # noqa: ARG002
        """Grey."""
        return {"pixel_values": torch.zeros((batch, *self.image.shape))}

    def logits(self, model: PreTrainedModel, chunks: Tensor) -> Tensor:
        """Of each image."""
        with products(chunks):
            return self.answer(model, self.inputs(chunks)).float().unsqueeze(1)

    def _cut(self, number: int) -> NDArray[np.uint8]:
        """An image as pixels of the size that the teacher reads, kept while there is room."""
        if number in self._pixels:
            return self._pixels[number]
        image = open_image(self._paths[number])
        processor: Any = self.processor
        found = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0].numpy()
        if found.shape != self.image.shape:
            raise TeacherError(
                f"the teacher reads images of {self.image.shape}; its preprocessor_config.json makes {found.shape}"
            )
        pixels: NDArray[np.uint8] = np.asarray(found, np.uint8)
        if (len(self._pixels) + 1) * pixels.nbytes <= KEPT_MIB * 2**20:
            self._pixels[number] = pixels
        return pixels
