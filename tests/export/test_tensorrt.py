"""What TensorRT is given: every precision in the graph, symmetric int8, and scripts that parse."""

import ast
import re
import subprocess
from pathlib import Path

import onnx
import pytest

from hwsearch.errors import ExportError
from hwsearch.export.tensorrt import write_tensorrt
from hwsearch.precision import Precision, Scheme
from tests.export.conftest import Make

MASKED = ("attention_mask", "past.0.key", "input_ids")
STATIC = Scheme("static", "int8", "channel")


def test_the_graph_says_every_precision(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("encoder", STATIC, "int8,fp32", Precision.FP16)
    found = write_tensorrt(student, workshop.tokens["select"], tmp_path / "out", (4, 24))
    assert found["model.onnx"].fault is None
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    scales = {tensor.name: tensor for tensor in graph.initializer}
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounded) == 4  # what query, key and value read, the projection, and the two of the feed-forward part
    for node in rounded:
        assert scales[node.input[1]].data_type == onnx.TensorProto.FLOAT16
        assert scales[node.input[2]].data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(scales[node.input[2]]).any()
    shell = (tmp_path / "out" / "build.sh").read_text()
    assert "--optShapes=input_ids:4x24,attention_mask:4x24" in shell
    assert "--stronglyTyped" in shell
    subprocess.run(["sh", "-n", str(tmp_path / "out" / "build.sh")], check=True)
    ast.parse((tmp_path / "out" / "build.py").read_text())


def test_a_generation_has_an_engine_of_its_own(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("decoder", STATIC, "int8,fp32", Precision.FP16)
    write_tensorrt(student, workshop.tokens["select"], tmp_path / "out", (4, 24), new_tokens=8)
    graph = onnx.load(tmp_path / "out" / "model_with_past.onnx").graph
    shell = (tmp_path / "out" / "build.sh").read_text()
    subprocess.run(["sh", "-n", str(tmp_path / "out" / "build.sh")], check=True)
    for kind in ("min", "opt", "max"):
        given = re.findall(rf"--{kind}Shapes=(\S+)", shell)[1]
        shapes = {name: shape.split("x") for name, _, shape in (one.partition(":") for one in given.split(","))}
        assert set(shapes) == {entry.name for entry in graph.input}
        for entry in graph.input:
            for size, dim in zip(shapes[entry.name], entry.type.tensor_type.shape.dim, strict=True):
                assert not dim.dim_value or dim.dim_value == int(size)
        mask, past, ids = (int(shapes[name][1 + (name[:4] == "past")]) for name in MASKED)
        assert mask == past + ids
    assert "past.1.value:4x2x31x16" in shell
    ast.parse((tmp_path / "out" / "build.py").read_text())


def test_students_for_another_scheme_are_refused(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("encoder", Scheme("dynamic", "uint8", "tensor"), "int8,fp32")
    with pytest.raises(ExportError, match="static symmetric ranges; this student was trained for dynamic uint8"):
        write_tensorrt(student, workshop.tokens["select"], tmp_path / "out", (4, 24))
    assert not (tmp_path / "out").exists()
