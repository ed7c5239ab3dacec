"""What every family promises: slices of the full shape are the teacher, what is most important is kept, students are
stock."""

import copy
import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import RobertaConfig, RobertaModel

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.distill import importance as importance_module
from hwsearch.distill import student as student_module
from hwsearch.distill.families import (
    FAMILIES,
    VALUES,
    architecture_of,
    family_of,
    longest_of,
    rows_at_once,
)
from hwsearch.distill.importance import Importance, measure_importance
from hwsearch.distill.job import TaskSpec
from hwsearch.distill.layers import with_layers
from hwsearch.distill.objectives.classes import Classes
from hwsearch.distill.objectives.image_classes import ImageClasses
from hwsearch.distill.objectives.masked_token import MaskedToken
from hwsearch.distill.objectives.neighbours import Neighbours, pooling_of
from hwsearch.distill.objectives.next_token import NextToken
from hwsearch.distill.objectives.objective import Objective
from hwsearch.distill.objectives.tags import Tags
from hwsearch.distill.rotation import basis_of, rotate
from hwsearch.distill.rows import NO_ANSWER, NO_SCORE, UNLABELLED
from hwsearch.distill.student import StudentPlan, build_student, empty_student, random_student
from hwsearch.distill.teacher import Teacher, load_teacher
from hwsearch.errors import ArchitectureError, TeacherError
from hwsearch.precision import Precision
from tests.checkpoints import CHECKPOINTS, save_checkpoint

PLAIN = (Precision.FP32, Precision.FP32)


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Teacher:
    return load_teacher(str(save_checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param, text_file)))


@pytest.fixture(scope="module")
def chunks(teacher: Teacher, image_folder: Path) -> torch.Tensor:
    """Random text as the teacher's objective has it, some of it short; or images."""
    if isinstance(teacher.objective, ImageClasses):
        corpus = teacher.objective.read(TaskSpec(data=str(image_folder)))
        assert corpus.labels
        return torch.from_numpy(teacher.objective.draw(corpus.texts["train"], corpus.labels["train"], 24, 17, 0))
    return random_chunks(type(teacher.objective))


def random_chunks(objective: type, count: int = 24) -> torch.Tensor:
    found = torch.randint(2, 320, (count, 33), generator=torch.Generator().manual_seed(0))
    if objective is NextToken:
        return found
    if objective is MaskedToken:
        truth = torch.full_like(found, NO_ANSWER)
        truth[:, 2:30:7], found[:, 2:30:7] = found[:, 2:30:7], 1
        return torch.cat([found, truth], 1)
    found[::3, 20:-1] = 0
    if objective is Tags:
        return torch.cat([found[:, :-1], torch.where(found[:, :-1] > 0, found[:, :-1] % 3, NO_ANSWER)], 1)
    found[:, -1] %= 3
    if objective is Neighbours:
        found[:, -1] = UNLABELLED
        return torch.nn.functional.pad(found, (0, 1), value=NO_SCORE)
    return found


@pytest.fixture(scope="module")
def importance(teacher: Teacher, chunks: torch.Tensor) -> Importance:
    return measure_importance(teacher.model, teacher.objective, chunks)


def shape(teacher: Teacher, depth: int = 3, width: int = 96, heads: int = 6, ffn: int = 128) -> Architecture:
    own = architecture_of(teacher.model.config, Precision.FP32)
    kv_heads = heads // (own.layers[0].heads // own.layers[0].kv_heads)
    layers = uniform_layers(depth, heads, kv_heads, ffn, [PLAIN] * depth)
    return replace(own, width=width, tied=own.tied and width == own.width, layers=layers)


def says(teacher: Teacher, model: Any, chunks: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(teacher.objective.logits(model.eval(), chunks), -1)


def test_the_teachers_own_shape_is_the_teacher(teacher: Teacher, importance: Importance, chunks: torch.Tensor) -> None:
    student = build_student(teacher.model, StudentPlan(shape(teacher), (0, 1, 2)), importance)
    assert torch.equal(says(teacher, student, chunks), says(teacher, teacher.model, chunks))


def test_a_rotation_that_drops_nothing_changes_nothing(
    teacher: Teacher, importance: Importance, chunks: torch.Tensor
) -> None:
    """The full width by the way of a narrow one: every direction is kept, so the function stays, within rounding."""
    family = family_of(teacher.model.config)
    if not family.rotates or family.behind:
        pytest.skip("no rotation can be folded into such weights")
    whole = replace(shape(teacher), tied=False)
    student, plan = empty_student(teacher.model, whole), StudentPlan(whole, (0, 1, 2))
    weights = dict(teacher.model.state_dict())
    streams = student_module.streams_of(weights, plan, importance, family)
    rotated = rotate(weights, streams, basis_of(streams, importance.slopes, whole.width, family.centres), family)
    moved = [name for name in weights if not torch.allclose(rotated[name], weights[name], atol=1e-2)]
    assert len(moved) > len(weights) / 2
    student.load_state_dict(rotated)
    assert torch.allclose(says(teacher, student, chunks), says(teacher, teacher.model, chunks), atol=2e-3)


@pytest.mark.parametrize("axis", ["width", "head", "ffn", "pooled"])
def test_the_order_of_what_is_alike_is_free(teacher: Teacher, chunks: torch.Tensor, axis: str) -> None:
    """Channels, heads and units may stand in any order, the same for all weights that the family's table names."""
    family, own = family_of(teacher.model.config), shape(teacher)
    heads, kv_heads, ffn = own.layers[0].shape
    shuffled = partial(torch.randperm, generator=torch.Generator().manual_seed(0))
    width, channels = shuffled(own.width), torch.arange(own.head_dim)
    groups, units = shuffled(kv_heads), shuffled(ffn)
    members = (groups[:, None] * (heads // kv_heads) + shuffled(heads // kv_heads)).flatten()
    head, kv_head = ((order[:, None] * own.head_dim + channels).flatten() for order in (members, groups))
    orders = {
        "width": {"width": width, **({"pooled": width} if own.tied else {})},
        "pooled": {} if own.tied else {"pooled": width},
        "head": {"head": head, "kv_head": kv_head, "qkv": torch.cat([head + i * len(head) for i in range(3)])},
        "ffn": {"ffn": units, "gate_up": torch.cat([units, units + ffn])},
    }[axis]
    model = copy.deepcopy(teacher.model)
    moved = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for position, there in enumerate(family.axes(name)[1]):
                if there in orders:
                    weight.copy_(weight.index_select(position, orders[there]))
                    moved += 1
    assert moved or axis == "pooled"
    assert torch.allclose(says(teacher, model, chunks), says(teacher, teacher.model, chunks), atol=2e-3)


@pytest.mark.parametrize("part", ["ffn", "width"])
def test_slices_are_nearer_to_the_teacher_than_fresh_weights(
    teacher: Teacher, importance: Importance, chunks: torch.Tensor, part: str
) -> None:
    own_head_dim = family_of(teacher.model.config).own_head_dim
    narrow = {"width": 72} if own_head_dim else {"width": 80, "heads": 5}
    smaller = shape(teacher, **({"ffn": 96} if part == "ffn" else narrow))
    plan, truth = StudentPlan(smaller, (0, 1, 2)), says(teacher, teacher.model, chunks)

    def distance(student: Any) -> float:
        found = says(teacher, student, chunks)
        if isinstance(teacher.objective, Neighbours):  # to random weights all texts are near: in which order counts
            other = ~torch.eye(len(chunks), dtype=torch.bool).unsqueeze(1)
            return 1 - float(torch.corrcoef(torch.stack([truth[other], found[other]]))[0, 1])
        return float((truth.exp() * (truth - found)).sum(-1).mean())

    sliced = distance(build_student(teacher.model, plan, importance))
    fresh = distance(random_student(teacher.model, smaller, 0))
    assert sliced < 0.85 * fresh, (sliced, fresh)


def test_a_student_is_stock(teacher: Teacher, importance: Importance, chunks: torch.Tensor, tmp_path: Path) -> None:
    student = build_student(teacher.model, StudentPlan(shape(teacher, 2, 64, 4, 64), (0, 2)), importance)
    student.save_pretrained(tmp_path)
    loaded = type(teacher.model).from_pretrained(tmp_path)
    assert torch.allclose(says(teacher, loaded, chunks), says(teacher, student, chunks), atol=1e-5)
    assert architecture_of(loaded.config, Precision.FP32).layers == shape(teacher, 2, 64, 4, 64).layers


def test_leaving_layers_out_is_undone(teacher: Teacher, chunks: torch.Tensor) -> None:
    whole = says(teacher, teacher.model, chunks)
    found: list[torch.Tensor] = []
    with_layers(teacher.model, (0, 2), lambda: float(found.append(says(teacher, teacher.model, chunks)) is None))
    assert not torch.equal(found[0], whole)
    assert torch.equal(says(teacher, teacher.model, chunks), whole)


def test_every_weight_has_its_axes(teacher: Teacher) -> None:
    family = family_of(teacher.model.config)
    for name, weight in teacher.model.state_dict().items():
        assert len(family.axes(name)[1]) == weight.dim(), name
    assert all(hasattr(layer, "forward") for layer in family.layers_of(teacher.model))


def test_an_encoder_shares_its_width_among_its_heads(tiny_classifier: Path) -> None:
    teacher, chunks = load_teacher(str(tiny_classifier)), random_chunks(Classes)
    importance = measure_importance(teacher.model, teacher.objective, chunks)
    with pytest.raises(ArchitectureError, match="shares its width among the heads: 4 of 16 channels are not 80"):
        build_student(teacher.model, StudentPlan(shape(teacher, width=80, heads=4), (0, 1, 2)), importance)


def test_large_feed_forward_parts_do_not_take_over(tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their moments would take more memory than the teacher."""
    teacher, chunks = load_teacher(str(tiny_classifier)), random_chunks(Classes)
    plan = StudentPlan(shape(teacher, ffn=64), (0, 1, 2))
    monkeypatch.setattr(student_module, "refit", lambda *_: None)
    with_moments = measure_importance(teacher.model, teacher.objective, chunks)
    monkeypatch.setattr(importance_module, "MOMENTS", 4 * 3 * 128**2 - 1)
    without = measure_importance(teacher.model, teacher.objective, chunks)
    assert [part.numel() for part in without.feed_forward] == [0, 0, 0]
    assert torch.equal(without.ffn, with_moments.ffn)
    one, other = (build_student(teacher.model, plan, found).state_dict() for found in (with_moments, without))
    unlike = {name.partition("layer.")[2][2:] for name in one if not torch.equal(one[name], other[name])}
    assert unlike == {"output.dense.weight"}


def test_padding_changes_nothing(tiny_classifier: Path) -> None:
    """A text says the same, however long the texts beside it are; and its padding has no part in what is important."""
    teacher = load_teacher(str(tiny_classifier))
    text = torch.randint(1, 320, (1, 12), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([text, torch.zeros(1, 1, dtype=torch.long)], 1)
    padded = torch.cat([text, torch.zeros(1, 21, dtype=torch.long)], 1)
    beside = torch.cat([padded, torch.ones(1, 34, dtype=torch.long)[:, : padded.shape[1]]])
    assert torch.allclose(says(teacher, teacher.model, beside)[0], says(teacher, teacher.model, alone)[0], atol=1e-5)
    one, other = (measure_importance(teacher.model, teacher.objective, chunk) for chunk in (alone, padded))
    assert torch.allclose(one.heads, other.heads, rtol=1e-3, atol=1e-6)


def test_a_head_that_is_not_known_is_one_clear_line(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    shutil.copytree(tiny_classifier, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(TeacherError, match=r"of the type bert are \.\.\.ForSequenceClassification, "):
        load_teacher(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(TeacherError, match=r"has no weights for .* it is damaged, or was made for something else"):
        load_teacher(str(folder))
    with pytest.raises(TeacherError, match=r"a bert is a teacher for text-classification, .* asks for text-generation"):
        load_teacher(str(folder), "text-generation")
    assert load_teacher(str(folder), "sentence-similarity").objective.output == "sentence_embedding"


@pytest.mark.parametrize(
    ("name", "objective", "ways"),
    [
        ("modernbert", Classes, ["full_attention", "sliding_attention", "full_attention"]),
        ("qwen2", NextToken, ["full_attention", "full_attention", "sliding_attention"]),
    ],
)
def test_layers_attend_as_those_of_the_teacher_that_they_are_cut_from(
    tmp_path: Path, text_file: Path, name: str, objective: type[Objective], ways: list[str]
) -> None:
    folder = save_checkpoint(tmp_path / name, name, text_file)
    config = json.loads((folder / "config.json").read_text())
    own = {"layer_types": ways, "use_sliding_window": True, "sliding_window": 4}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    teacher = load_teacher(str(folder))
    chunks = random_chunks(objective)
    importance = measure_importance(teacher.model, teacher.objective, chunks)
    student = build_student(teacher.model, StudentPlan(shape(teacher, depth=2), (0, 2)), importance)
    assert student.config.layer_types == [ways[0], ways[2]]
    left = with_layers(teacher.model, (0, 2), lambda: says(teacher, teacher.model, chunks))
    assert torch.allclose(says(teacher, student, chunks), left, atol=1e-5)
    assert teacher.model.config.layer_types == ways


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"problem_type": "regression"}, "chooses one of several classes; this one is for regression"),
        ({"problem_type": "multi_label_classification"}, "this one is for multi label classification"),
        ({"id2label": {"0": "score"}, "label2id": {"score": 0}}, r"this one is for regression \(one class\)"),
        (
            {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "label2id": {"red": 0, "green": 1, "blue": "two"}},
            "gives each class a number from 0 to 2",
        ),
    ],
)
def test_a_classifier_that_chooses_no_class_is_one_clear_line(
    tiny_classifier: Path, tmp_path: Path, entries: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_classifier, folder)
    if len(entries.get("id2label", ())) == 1:
        model: Any = load_teacher(str(folder)).model
        model.classifier.weight, model.classifier.bias = (
            torch.nn.Parameter(weight[:1]) for weight in (model.classifier.weight, model.classifier.bias)
        )
        model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    with pytest.raises(TeacherError, match=says):
        load_teacher(str(folder))


def test_positions_that_turn_by_the_length_of_the_text_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "config.json"
    config = json.loads(path.read_text())
    for kind, refused in (("linear", False), ("dynamic", True)):
        turned = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
        path.write_text(json.dumps({**config, "rope_parameters": turned}))
        with pytest.raises(TeacherError, match="rope_type dynamic") if refused else nullcontext():
            load_teacher(str(tmp_path / "teacher"))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, "cls"),
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, "cls"),
        ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}}, "mean"),
        ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "pools by lasttoken; students are pooled by mean"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}}, "by max, cls"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "go through Dense"),
        ({}, "mean"),
    ],
)
def test_an_encoder_is_pooled_as_its_folder_says_or_refused(tmp_path: Path, files: dict[str, Any], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    if says in ("mean", "cls"):
        assert pooling_of(tmp_path) == says
        return
    with pytest.raises(TeacherError, match=says):
        pooling_of(tmp_path)


def test_a_sentence_encoders_settings_go_with_its_students(tmp_path: Path, text_file: Path) -> None:
    """Under the name that newer versions have for the longest text."""
    teacher = save_checkpoint(tmp_path / "teacher", "roberta embeds", text_file)
    (teacher / "sentence_roberta_config.json").write_text('{"max_seq_length": 24}')
    (teacher / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 96, "pooling_mode_cls_token": True, "include_prompt": False}
    (teacher / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    loaded = load_teacher(str(teacher))
    loaded.objective.save(tmp_path, loaded.model.config)
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text()) == {"max_seq_length": 24}
    found = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert found == {**pooling, "pooling_mode_mean_tokens": False}


@pytest.mark.parametrize(("padding", "longest"), [(0, 65), (1, 64), (3, 62)])
def test_positions_count_from_the_padding_on(padding: int, longest: int, tmp_path: Path, text_file: Path) -> None:
    entries = {**CHECKPOINTS["roberta"][1], "pad_token_id": padding, "max_position_embeddings": 66}
    config = RobertaConfig(**entries, vocab_size=352)
    assert longest_of(config) == longest
    model, ids = RobertaModel(config).eval(), torch.full((1, longest + 1), 7)
    assert model(ids[:, :longest]).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_plain_attention_takes_its_room(tmp_path: Path, text_file: Path) -> None:
    """What every head sees of every token, and of all layers where gradients are to come back through them."""
    plain, fused = (
        load_teacher(str(save_checkpoint(tmp_path / name, name, text_file))).model.config
        for name in ("modernbert", "bert")
    )
    assert rows_at_once(fused, 4096, 100) == rows_at_once(fused, 4096, 100, backward=True) == 100
    assert rows_at_once(plain, 4096, 100) == max(1, VALUES // (6 * 4096**2)) < 100
    assert rows_at_once(plain, 1024, 100) == VALUES // (6 * 1024**2) == 10
    assert rows_at_once(plain, 1024, 100, backward=True) == VALUES // (3 * 6 * 1024**2) == 3


def test_no_type_is_in_two_families() -> None:
    names = [name for family in FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["bert", "roberta masks", "distilbert tags"])
@pytest.mark.parametrize("part", ["depth", "width"])
def test_norms_behind_the_parts_make_up_for_what_is_left_out(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    """On text that they were not fitted on."""
    teacher = load_teacher(str(save_checkpoint(tmp_path, name, text_file)))
    seen, unseen = random_chunks(type(teacher.objective), 200).split([160, 40])
    importance = measure_importance(teacher.model, teacher.objective, seen)
    smaller, layers = (shape(teacher, depth=2), (0, 2)) if part == "depth" else (shape(teacher, 3, 80, 5), (0, 1, 2))

    def distance() -> float:
        student = build_student(teacher.model, StudentPlan(smaller, layers), importance)
        return float((says(teacher, teacher.model, unseen) - says(teacher, student, unseen)).square().mean())

    stream = measure_importance(teacher.model, teacher.objective, seen[:50]).behind
    for first, whole in zip(stream, importance.of_first(50).behind, strict=True):
        assert torch.allclose(first, whole, atol=1e-5)
    fitted = distance()
    monkeypatch.setattr(student_module, "refit", lambda *_: None)
    assert fitted < 0.7 * distance()
