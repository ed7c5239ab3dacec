"""Images of one's own: what is read, how it is told apart, and what is refused."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hwsearch.distill import images
from hwsearch.distill.families import architecture_of, image_at
from hwsearch.distill.images import labelled_images, open_image
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.objectives.image_classes import ImageClasses
from hwsearch.distill.proxy import Student
from hwsearch.distill.recipe import Recipe, Stage
from hwsearch.distill.rows import UNLABELLED
from hwsearch.distill.teacher import Teacher, load_teacher
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError, TeacherError
from hwsearch.precision import Precision
from tests.checkpoints import NAMES, save_checkpoint

CLASSES = {name: i for i, name in enumerate(NAMES)}


def read(data: Path) -> dict[str, int]:
    """The class of every image of a source, by its hash."""
    corpus, places = labelled_images(data, None, "image", "label", CLASSES)
    assert corpus.labels
    found: dict[str, int] = {}
    for split, names in corpus.texts.items():
        assert not set(names) & set(found)
        found |= dict(zip(names, corpus.labels[split], strict=True))
    assert set(found) == set(places)
    return found


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("seer"), "vit", text_file)


@pytest.fixture(scope="module")
def teacher(seer: Path) -> Teacher:
    return load_teacher(str(seer))


def test_every_form_says_the_same(image_folder: Path, tmp_path: Path) -> None:
    classes = read(image_folder)
    assert sorted(set(classes.values())) == [0, 1, 2]
    files = sorted(image_folder.rglob("*.png"))
    with (tmp_path / "paths.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *([path, path.parent.name] for path in files)])
    assert read(tmp_path / "paths.csv") == classes
    cells = [{"bytes": path.read_bytes(), "path": None} for path in files]
    table = pd.DataFrame({"image": cells, "label": [CLASSES[path.parent.name] for path in files]})
    table.to_parquet(tmp_path / "bytes.parquet")
    assert read(tmp_path / "bytes.parquet") == classes
    for path in files:
        shutil.copy(path, tmp_path / f"{path.parent.name}-{path.name}")
    assert read(tmp_path) == dict.fromkeys(classes, UNLABELLED)


def test_what_is_no_image_is_one_clear_line(image_folder: Path, tmp_path: Path, teacher: Teacher) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images \(.png, "):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match=r"cannot read .*nowhere"):
        read(tmp_path / "nowhere.csv")
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "red" / "broken.png").write_text("no image")
    with pytest.raises(DataError, match=r"broken\.png is no image: not in a known format"):
        read(tmp_path / "images")
    (tmp_path / "images" / "red" / "broken.png").unlink()
    (tmp_path / "images" / "red").rename(tmp_path / "images" / "violet")
    with pytest.raises(DataError, match="the teacher knows no class 'violet'"):
        read(tmp_path / "images")
    (tmp_path / "rows.csv").write_text("image,label\nnone.png,red\n")
    with pytest.raises(DataError, match=r"cannot read the image .*none\.png: No such file"):
        read(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("picture,label\nnone.png,red\n")
    with pytest.raises(DataError, match="has no column 'image'"):
        read(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="--data FOLDER with a folder of images for each class"):
        teacher.objective.read(TaskSpec())


def test_an_image_cut_short_is_one_clear_line(image_folder: Path, tmp_path: Path, teacher: Teacher) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    for path in (tmp_path / "images").rglob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
        content = path.with_suffix(".jpg").read_bytes()
        path.with_suffix(".jpg").write_bytes(content[: len(content) // 2])
        path.unlink()
    corpus = teacher.objective.read(TaskSpec(data=str(tmp_path / "images")))
    assert corpus.labels
    rows = teacher.objective.draw(corpus.texts["train"], corpus.labels["train"], 4, 17, 0)
    with pytest.raises(DataError, match=r"cannot read the image .*\.jpg: .*truncated.*; repair it or leave it out"):
        teacher.objective.inputs(torch.from_numpy(rows))


def test_pixels_are_the_processors(image_folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = teacher.objective
    assert isinstance(objective, ImageClasses)
    corpus, places = labelled_images(image_folder, None, "image", "label", CLASSES)
    objective.read(TaskSpec(data=str(image_folder)))
    assert corpus.labels
    rows = torch.from_numpy(objective.draw(corpus.texts["select"], corpus.labels["select"], 6, 17, None))
    images = [Image.open(places[f"{number:015x}"]) for number in rows[:, 0].tolist()]
    wanted = teacher.processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(objective.inputs(rows)["pixel_values"], wanted, atol=1e-6)
    monkeypatch.setattr("hwsearch.distill.images.open_image", None)  # what has been read is not read again
    assert torch.allclose(objective.inputs(rows)["pixel_values"], wanted, atol=1e-6)


def test_a_further_teacher_sees_the_same_images(seer: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(seer, tmp_path / "other")
    recipe = Recipe(batch=2, teachers=(str(tmp_path / "other"),))
    task = Workshop(
        TaskSpec(str(seer), str(image_folder), sequence=17, chunks=24, held_out_chunks=8, recipe=recipe)
    ).task
    student = Student(task, architecture_of(task.teacher.model.config, Precision.FP32))
    student.train(2)  # one of each teacher
    assert student.finite


def test_what_does_not_fit_the_teacher_is_one_clear_line(
    seer: Path, image_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    seen = image_at(seer)
    assert seen is not None
    assert seen == ((3, 32, 32), 17, 192)
    assert image_at(save_checkpoint(tmp_path / "bert", "bert", text_file)) is None
    spec = TaskSpec(str(seer), str(image_folder), sequence=128)
    with pytest.raises(DataError, match="reads an image as 17 tokens; --sequence asks for 128"):
        Workshop(spec)
    noisy = Recipe(stages=(Stage(token_noise=0.1),))
    with pytest.raises(DataError, match="images have none"):
        Workshop(TaskSpec(str(seer), str(image_folder), sequence=17, recipe=noisy))
    for file in seer.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError, match=r"no image processor in .* \(preprocessor_config.json\)"):
        load_teacher(str(tmp_path))
    settings = json.loads((seer / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 24, "width": 24}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    teacher = load_teacher(str(tmp_path))
    corpus = teacher.objective.read(TaskSpec(data=str(image_folder)))
    assert corpus.labels
    rows = teacher.objective.draw(corpus.texts["select"], corpus.labels["select"], 2, 17, None)
    with pytest.raises(TeacherError, match=r"reads images of \(3, 32, 32\); its preprocessor_config.json makes"):
        teacher.objective.inputs(torch.from_numpy(rows))
    assert np.all(rows[:, 0] > 0)


def test_an_image_is_seen_as_it_is_meant(tmp_path: Path) -> None:
    """Upright, whatever way the camera was held; and grey of 16 bits as grey."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 200
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    seen = np.asarray(open_image(tmp_path / "turned.png"))
    assert seen.shape == (8, 4, 3)
    assert seen[:4].min() == 200
    assert seen[4:].max() == 0
    Image.fromarray(np.array([[0, 256 * 100, 65535]], np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(open_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_an_image_too_large_is_one_clear_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="cannot read the image"):
        open_image(next(image_folder.rglob("*.png")))


def test_images_are_hashed_once_unless_they_change(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    before = read(folder)
    with monkeypatch.context() as patched:
        patched.setattr(images, "_hash_of", lambda path: pytest.fail(f"{path} was read again"))
        assert read(folder) == before
    first, second = sorted(folder.rglob("*.png"))[:2]
    first.unlink()
    Image.new("RGB", (30, 30), (1, 2, 3)).save(second)
    assert len(set(read(folder)) - set(before)) == 1
    facts = second.stat()
    for colour in ((3, 2, 1), (5, 5, 5)):  # of one size, and of one time of writing, as an archive restores it
        Image.new("RGB", (30, 30), colour).save(second, "BMP")
        os.utime(second, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        again = read(folder)
        assert len(set(again) - set(before)) == 1
        before = {**before, **again}
