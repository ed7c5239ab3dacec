"""Recipes: files of data that say what a student is asked; going on equals never having stopped, whatever it is."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import Architecture, parse_precisions, uniform_layers
from hwsearch.distill import products
from hwsearch.distill.families import architecture_of, family_of
from hwsearch.distill.features import Beside, hidden_maps, plain_attention
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.lesson import Lesson
from hwsearch.distill.losses import kl
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.recipe import Recipe, Stage, names, read_recipe
from hwsearch.distill.student import random_student
from hwsearch.distill.teacher import continued, load_teacher
from hwsearch.distill.workshop import Workshop
from hwsearch.errors import DataError, TeacherError
from hwsearch.precision import Precision, Scheme
from hwsearch.search.assistants import between
from tests.checkpoints import CHECKPOINTS, save_checkpoint

EVERYTHING = Stage(hidden=1.0, attention=1.0, relations=1.0, samples=1.0)


def shortened(recipe: Recipe) -> Recipe:
    """With three steps for every stage that says some."""
    return replace(recipe, batch=4, stages=tuple(replace(s, steps=min(s.steps, 3)) for s in recipe.stages))


def workshop(teacher: Path, data: Path, recipe: Recipe) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(
        TaskSpec(teacher=str(teacher), data=str(data), sequence=24, chunks=64, held_out_chunks=16, recipe=recipe)
    )


def shape(workshop: Workshop, plan: str = "int8") -> Architecture:
    own = workshop.facts().architecture
    return replace(own, width=64, tied=False, layers=uniform_layers(2, 4, 2, 64, parse_precisions(plan, 2)))


@pytest.mark.parametrize("name", names())
def test_every_recipe_trains_and_goes_on_where_it_was(
    tmp_path: Path, tiny_teacher: Path, text_file: Path, name: str
) -> None:
    recipe = shortened(read_recipe(name))
    assert recipe.source
    task = workshop(tiny_teacher, text_file, recipe).task
    plan = shape(workshop(tiny_teacher, text_file, recipe))
    whole, half = Student(task, plan), Student(task, plan)
    whole.train(7)
    half.train(2)
    half.keep(tmp_path / "state.pt")
    rest = Student(task, plan, kept=load_state(tmp_path / "state.pt"))
    rest.train(7)
    assert all(torch.equal(a, b) for a, b in zip(*(s.model.state_dict().values() for s in (whole, rest)), strict=True))
    trained, untrained = (student.evaluate(task.select)[0].sum() for student in (whole, Student(task, plan)))
    assert np.isfinite(trained)
    assert trained != untrained


def test_a_small_piece_at_a_time_is_the_same_step(
    tiny_teacher: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_has_instructions", lambda: False)  # bfloat16 rounds the gradient of every piece
    students = []
    for recipe in (Recipe(batch=4), Recipe(batch=4, accumulate=3), Recipe(batch=4, recompute=True)):
        task = workshop(tiny_teacher, text_file, recipe).task
        student = Student(task, shape(workshop(tiny_teacher, text_file, recipe), "fp32"))
        student.train(3)
        students.append(torch.cat([p.flatten() for p in student.model.parameters()]))
    for other in students[1:]:
        assert float((students[0] - other).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_computed_again_is_computed_twice(tiny_teacher: Path, text_file: Path, recompute: bool) -> None:
    own, calls = workshop(tiny_teacher, text_file, Recipe(batch=4, recompute=recompute)), list[int]()
    student = Student(own.task, shape(own))
    inside = next(iter(family_of(student.model.config).layers_of(student.model)[0].children()))
    inside.register_forward_hook(lambda *_: calls.append(1))
    student.train(1)
    assert len(calls) == 1 + recompute


def test_what_is_computed_again_is_rounded_as_before(tiny_teacher: Path, text_file: Path) -> None:
    students = []
    for recipe in (Recipe(batch=4), Recipe(batch=4, recompute=True)):
        own = workshop(tiny_teacher, text_file, recipe)
        static = dataclasses.replace(own.task, scheme=Scheme(activations="static"))
        student = Student(static, shape(own))
        student.train(3)
        students.append(torch.cat([value.flatten() for value in student.model.state_dict().values()]))
    assert float((students[0] - students[1]).abs().max()) < 1e-5


def test_noise_leaves_what_is_hidden_and_labels_alone(tmp_path: Path, text_file: Path) -> None:
    """A masked language model's masks stay; a language model's labels are of the text without noise."""
    folder = save_checkpoint(tmp_path / "masks", "bert masks", text_file)
    for stages in ((Stage(token_noise=0.9),), (Stage(token_noise=0.9, labels=1.0),)):
        own = workshop(folder, text_file, Recipe(batch=4, stages=stages))
        student = Student(own.task, own.facts().architecture)
        student.train(2)
        assert student.finite
        chunks, objective = torch.from_numpy(own.task.chunks[:8]), own.teacher.objective
        with Lesson(stages[0], own.task, student.model, student.layers, student.maps) as lesson:
            noisy = lesson._mistaken(chunks, objective.inputs(chunks))
        special = torch.isin(objective.inputs(chunks)["input_ids"], torch.tensor(own.teacher.processor.all_special_ids))
        ids, others = (objective.inputs(some)["input_ids"] for some in (chunks, noisy))
        assert bool((ids != others)[~special].any())
        assert torch.equal(ids[special], others[special])
        assert torch.equal(objective.labels(chunks), objective.labels(noisy))


def test_text_that_reads_like_a_mask_is_text(tmp_path: Path, text_file: Path) -> None:
    folder = save_checkpoint(tmp_path / "masks", "bert masks", text_file)
    data = tmp_path / "masks.txt"
    data.write_text(text_file.read_text().replace("self", "<mask>"))
    assert "<mask>" in data.read_text()
    own = workshop(folder, data, Recipe(batch=4))
    mask, chunks = own.teacher.processor.mask_token_id, own.tokens["train"]
    ids = chunks[:, : chunks.shape[1] // 2]
    assert len(set((ids == mask).sum(1).tolist())) == 1
    Student(own.task, own.facts().architecture).train(1)


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_a_teacher_beside_itself_is_nowhere_apart(tmp_path: Path, text_file: Path, name: str) -> None:
    teacher = load_teacher(str(save_checkpoint(tmp_path, name, text_file)))
    own = architecture_of(teacher.model.config, Precision.FP32)
    narrow = replace(own, layers=own.layers[:2])
    random = torch.Generator().manual_seed(0)
    inputs, mask = {"pixel_values": torch.rand((16, 3, 32, 32), generator=random)}, None
    if "input_ids" in teacher.objective.axes:
        ids = torch.randint(5, 300, (16, 24), generator=random)
        mask = torch.ones_like(ids)
        mask[1, 10:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
    found = {}
    for which, layers in (("itself", (0, 1, 2)), ("another", (0, 2))):
        torch.manual_seed(0)
        student = random_student(teacher.model, own if which == "itself" else narrow, 0).eval()
        if which == "itself":
            student.load_state_dict(teacher.model.state_dict())
        with plain_attention(student, teacher.model), torch.no_grad():
            beside = Beside(student, teacher.model, layers, hidden_maps(student, teacher.model))
            student.base_model(**inputs)
            beside.look(inputs)
            for loss in ("hidden", "attention", "relations", "samples"):
                stage = replace(Stage(answers=0.0, hidden=1.0), hidden=0.0, answers=1.0)
                found[which, loss] = float(beside.loss(replace(stage, **{loss: 1.0}), 1.0, mask))
            beside.close()
        assert not any(module._forward_hooks for module in teacher.model.modules())
    for loss in ("hidden", "attention", "relations", "samples"):
        assert abs(found["itself", loss]) < 1e-4, loss
        assert found["another", loss] > 1e-4, loss


def test_layers_join_one_by_one(tiny_teacher: Path, text_file: Path) -> None:
    own = workshop(tiny_teacher, text_file, Recipe())
    task, plan = own.task, shape(own, "fp32")
    student = Student(task, plan)
    stage = Stage(steps=10, answers=0.0, hidden=1.0, progressive=True)
    chunks = torch.from_numpy(task.chunks[:4])
    said = task.outputs.batch(np.arange(4))
    layers = student.model.model.layers
    for over, trained in ((0.0, 1), (0.4, 1), (0.6, 2)):
        student.model.zero_grad()
        maps = hidden_maps(student.model, task.teacher.model)
        with Lesson(stage, task, student.model, student.layers, maps) as lesson:
            lesson.loss(chunks, *said, over, 0).backward()
        assert [layer.mlp.up_proj.weight.grad is not None for layer in layers] == [i < trained for i in range(2)]


def test_soft_answers_are_softer_and_merged_where_they_are_cut() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    every = torch.arange(7).expand(5, -1)
    for temperature in (1.0, 3.0):
        own, other = (torch.log_softmax(x / temperature, -1) for x in (student, teacher))
        whole = (other.exp() * (other - own)).sum(-1)
        found = kl(student.softmax(-1), every, teacher.softmax(-1), temperature)
        assert torch.allclose(found, whole, atol=1e-5)
        top = teacher.softmax(-1).topk(3)
        cut = kl(student.softmax(-1), top.indices, top.values, temperature)
        assert bool((cut >= 0).all())
        assert torch.allclose(kl(teacher.softmax(-1), top.indices, top.values, temperature), torch.zeros(5), atol=1e-6)


def test_a_student_rests_from_rounding_while_its_stage_is_in_float(tiny_teacher: Path, text_file: Path) -> None:
    own = workshop(tiny_teacher, text_file, Recipe())
    student = Student(own.task, shape(own))
    plain = Student(own.task, shape(own, "fp32"))
    chunks, said = torch.from_numpy(own.task.chunks[:4]), own.task.outputs.batch(np.arange(4))
    losses = {}
    for quantised in (True, False):
        stage = Stage(quantised=quantised)
        for name, one in (("int8", student), ("fp32", plain)):
            with Lesson(stage, own.task, one.model.eval(), one.layers, one.maps) as lesson, torch.no_grad():
                losses[name, quantised] = float(lesson.loss(chunks, *said, 0.0, 0))
    assert losses["int8", False] == losses["fp32", False] == losses["fp32", True] != losses["int8", True]


def test_labels_count_where_there_are_some(tiny_classifier: Path, labelled_file: Path) -> None:
    stage = Stage(answers=0.0, labels=1.0)
    own = workshop(tiny_classifier, labelled_file, Recipe(stages=(stage,)))
    task = own.task
    whole = own.facts().architecture
    student = Student(task, whole)
    chunks, said = torch.from_numpy(task.chunks[:8].copy()), task.outputs.batch(np.arange(8))
    with Lesson(stage, task, student.model.eval(), student.layers, student.maps) as lesson, torch.no_grad():
        found = float(lesson.loss(chunks, *said, 0.0, 0))
        logits = task.teacher.objective.logits(student.model, chunks).squeeze(1)
        assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, chunks[:, -1])), rel=1e-5)
        chunks[:, -1] = -1
        assert float(lesson.loss(chunks, *said, 0.0, 0)) == 0


def test_noise_is_of_the_tokens_that_are_there(tiny_classifier: Path, labelled_file: Path) -> None:
    own = workshop(tiny_classifier, labelled_file, Recipe())
    task, objective = own.task, own.teacher.objective
    student = Student(task, own.facts().architecture)
    chunks = torch.from_numpy(task.chunks[:8])
    inputs = objective.inputs(chunks)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with Lesson(Stage(token_noise=0.5), task, student.model, student.layers, student.maps) as lesson:
        lesson._random.manual_seed(0)
        noisy = lesson._mistaken(chunks, inputs)
    changed = noisy != chunks
    assert 0.2 < float(changed[:, : ids.shape[1]][mask.bool()].float().mean()) <= 0.6
    assert not bool(changed[:, : ids.shape[1]][~mask.bool()].any())
    assert torch.equal(noisy[:, -1], chunks[:, -1])


def test_a_step_listens_to_one_teacher_in_turn(
    tmp_path: Path, tiny_teacher: Path, text_file: Path, tiny_classifier: Path
) -> None:
    other = load_teacher(str(tiny_teacher))
    other.model.requires_grad_(True)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(0.5)
    other.model.save_pretrained(tmp_path / "other")
    other.processor.save_pretrained(tmp_path / "other")
    (tmp_path / "two.toml").write_text('teachers = ["other"]\nbatch = 4\n')
    recipe = read_recipe(str(tmp_path / "two.toml"))
    assert recipe.teachers == (str((tmp_path / "other").resolve()),)
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    settings |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # as distilgpt2's, which say nothing
    (tmp_path / "other" / "config.json").write_text(json.dumps(settings))
    own = workshop(tiny_teacher, text_file, recipe)
    student = Student(own.task, shape(own))
    rows, losses = np.arange(4), []
    with Lesson(recipe.stages[0], own.task, student.model, student.layers, student.maps) as lesson:
        for step in range(3):
            student.step = step
            losses.append(float(student._loss(lesson, rows).detach()))
    assert losses[0] == losses[2] != losses[1]
    with pytest.raises(TeacherError, match=r"bert is a teacher for|other tokens"):
        workshop(tiny_teacher, text_file, replace(recipe, teachers=(str(tiny_classifier),)))


def test_what_the_teacher_wrote_begins_as_the_text_does(
    tmp_path: Path,
    tiny_teacher: Path,
    text_file: Path,
    tiny_classifier: Path,
    labelled_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = workshop(tiny_teacher, text_file, Recipe()).task.chunks
    written = workshop(tiny_teacher, text_file, Recipe(written=0.5)).task.chunks
    folder = tmp_path / "chatty"  # which ends early and is never surprised, by its own settings
    shutil.copytree(tiny_teacher, folder)
    ids = list(range(200))
    settings = {"eos_token_id": ids, "temperature": 0.01, "top_p": 0.1, "do_sample": True, "max_length": 9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    half = len(plain) // 2
    assert np.array_equal(continued(load_teacher(str(folder)), plain[:half], tmp_path / "anew"), written[:half])
    assert np.array_equal(written[half:], plain[half:])
    assert np.array_equal(written[:half, :6], plain[:half, :6])
    assert (written[:half, 6:] != plain[:half, 6:]).mean() > 0.5
    with pytest.raises(DataError, match="no language model"):
        workshop(tiny_classifier, labelled_file, Recipe(written=0.5))
    teacher, rows = load_teacher(str(tiny_teacher)), list[int]()
    generate = teacher.model.generate
    monkeypatch.setattr(teacher.model, "generate", lambda p, **given: rows.append(len(p)) or generate(p, **given))
    sizes = architecture_of(teacher.model.config, Precision.FP32)
    cached = sum(2 * layer.kv_heads * sizes.head_dim for layer in sizes.layers)
    monkeypatch.setattr("hwsearch.distill.teacher.CACHED", 3 * cached * plain.shape[1])
    few = continued(teacher, plain[:7], tmp_path / "few")
    assert rows == [3, 3, 1]
    assert few.shape == plain[:7].shape
    assert np.array_equal(few[:, :6], plain[:7, :6])


def test_a_sentence_encoder_of_another_width_may_teach_beside(tmp_path: Path, text_file: Path) -> None:
    """Its vectors are set beside each other alone."""
    from transformers import BertConfig, BertModel

    teacher = load_teacher(str(save_checkpoint(tmp_path / "one", "bert embeds", text_file)))
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    entries = {**teacher.model.config.to_dict(), "hidden_size": teacher.model.config.hidden_size // 2}
    BertModel(BertConfig(**entries), add_pooling_layer=False).save_pretrained(tmp_path / "other")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"a text of number {i}\n" for i in range(400)))
    recipe = Recipe(batch=2, teachers=(str(tmp_path / "other"),))
    task = workshop(tmp_path / "one", texts, recipe).task
    student = Student(task, teacher_shape := architecture_of(teacher.model.config, Precision.FP32))
    assert teacher_shape.width == teacher.model.config.hidden_size
    student.train(3)
    assert student.finite


@pytest.mark.parametrize("name", ["llama", "qwen2", "bert", "gpt2"])
def test_assistants_lie_between(tmp_path: Path, text_file: Path, name: str) -> None:
    config = load_teacher(str(save_checkpoint(tmp_path, name, text_file))).model.config
    teacher = architecture_of(config, Precision.FP32)
    layer = teacher.layers[0]
    shared = teacher.width == layer.heads * teacher.head_dim and teacher.norm == "layernorm"
    group = layer.heads // layer.kv_heads
    student = replace(
        teacher,
        width=teacher.head_dim * group if shared else 64,
        tied=False,
        layers=uniform_layers(1, group, 1, 32, [(Precision.INT8, Precision.INT8)]),
    )
    for share in (0.3, 0.5, 0.8):
        assistant = between(student, teacher, share)
        # A narrower one has a head of its own, which may make it larger than a tied teacher.
        assert replace(student, tied=True).parameters < replace(assistant, tied=True).parameters < teacher.parameters
        assert assistant.width % assistant.layers[0].heads == 0
    assert between(student, teacher, 1.0).layers[0].shape == layer.shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate = 0", "above 0"),
        ("[[stages]]\nhiden = 1.0", "hiden"),
        ("[[stages]]\nsteps = 10", "last says its steps"),
        ("[[stages]]\nanswers = 0.0", "asks for something"),
        ("[[stages]]\nprogressive = true", "progressive"),
        ("[[stages]]\ntemperature = [2.0, 1.0]", "no end"),
        ("[[stages]]\ntemperature = [0.0, 0.0]", "temperature is above 0"),
        ("[[stages]]\nquantised = false", "trains what is deployed"),
        ("accumulate = 9", "no 9 pieces"),
        ("assistants = [0.2, 0.8]", "assistants fall"),
        ("written = 2.0", "from 0 to 1"),
        ("rate = nan", "numbers above 0"),
        ("seed = -1", "seed 0 or more"),
        ("[[stages]]\nlabels = inf", "no nan, no inf"),
        ("stages = [", "no recipe"),
    ],
)
def test_what_is_no_recipe_is_said_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(DataError, match=says) as failure:
        read_recipe(str(tmp_path / "mine.toml"))
    assert "\n" not in str(failure.value)
    with pytest.raises(DataError, match="answers, assistant"):
        read_recipe("no-such")


def test_stages_take_turns() -> None:
    recipe = Recipe(stages=(Stage(steps=10), Stage(steps=4), Stage()))
    found: list[Any] = [recipe.at(step) for step in (0, 5, 9, 10, 13, 14, 1000)]
    assert found == [(0, 0.0), (0, 0.5), (0, 0.9), (1, 0.0), (1, 0.75), (2, 0.0), (2, 0.0)]
    assert recipe.before_last == 14
