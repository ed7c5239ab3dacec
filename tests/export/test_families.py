"""Students of every family train quantised, and run as graphs."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from hwsearch.architecture import parse_precisions
from hwsearch.distill.families import architecture_of
from hwsearch.distill.job import Recipe, TaskSpec
from hwsearch.distill.proxy import Student, divergence
from hwsearch.distill.task import Workshop
from hwsearch.export.onnx import write_graphs
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme
from tests.checkpoints import CHECKPOINTS, save_checkpoint

SCHEME = Scheme(activations="dynamic", activation_type="uint8")
KINDS = ("gpt2", "qwen3", "qwen2", "roberta", "distilbert", "modernbert")  # llama and bert stand in the other tests


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("model_type", KINDS)
def test_a_student_of_every_family_runs_as_a_graph(
    model_type: str, uneven: bool, tmp_path: Path, text_file: Path, labelled_file: Path
) -> None:
    torch.set_num_threads(1)
    if uneven and model_type in ("qwen2", "roberta"):
        pytest.skip("as llama and bert")
    folder = save_checkpoint(tmp_path, model_type, text_file)
    if "Classification" in CHECKPOINTS[model_type][0]:
        config = json.loads((folder / "config.json").read_text())
        names = ["red", "green", "blue"]
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (folder / "config.json").write_text(json.dumps(config))
        data = labelled_file
    else:
        data = text_file
    recipe = Recipe(batch=4)
    spec = TaskSpec(str(folder), str(data), sequence=24, chunks=64, held_out_chunks=16, recipe=recipe, scheme=SCHEME)
    workshop = Workshop(spec)
    whole = architecture_of(workshop.teacher.model.config, Precision.FP32)
    layers = [
        msgspec.structs.replace(whole.layers[0], attention=a, feed_forward=f, ffn=64)
        for a, f in parse_precisions("int8,fp32/int8", 2)
    ]
    if uneven:
        kv_heads = whole.layers[0].kv_heads // 2 or 1
        heads = kv_heads * (whole.layers[0].heads // whole.layers[0].kv_heads)
        layers[1] = msgspec.structs.replace(layers[1], heads=heads, kv_heads=kv_heads, ffn=32)
    head = Precision.INT8 if whole.head == "lm" else Precision.FP32
    architecture = msgspec.structs.replace(whole, layers=tuple(layers), head_precision=head)
    student = Student(workshop.task, architecture)
    before = divergence(student.model, workshop.task.select)
    student.train(12)
    assert divergence(student.model, workshop.task.select) < before
    path = tmp_path / "state.pt"
    student.keep(path)
    trained = TrainedStudent.load(workshop.teacher, SCHEME, architecture, path)
    found = write_graphs(trained, workshop.task.select.chunks, tmp_path, None)  # a failed parity is an error
    assert set(found) == {"model.onnx"} | ({"model_with_past.onnx"} if whole.block == "decoder" else set())
