"""A student as ONNX: it computes what was trained, in every scheme that can be written, or is an error."""

import copy
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from hwsearch.bench.board.onnxruntime import keeping, options_of
from hwsearch.bench.graph import build_graph
from hwsearch.bench.onnxruntime import prepare_graph
from hwsearch.distill.losses import kl_of_each
from hwsearch.errors import ExportError, GraphError
from hwsearch.export.forms import deliver
from hwsearch.export.graph import module_of, onnx_model
from hwsearch.export.onnx import texts_of, write_onnx
from hwsearch.export.parity import WIDE_PRODUCTS, Parity, compare, goes, of_last_bits, student_whole
from hwsearch.export.student import TrainedStudent
from hwsearch.precision import Precision, Scheme
from hwsearch.workload import PHASES, Workload
from tests.export.conftest import Make

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DYNAMIC = Scheme("dynamic", "uint8", "tensor")
STATIC = Scheme("static", "int8", "channel")


@pytest.mark.parametrize(
    ("block", "scheme", "precisions"),
    [
        ("decoder", DYNAMIC, "int8,fp32/int8"),
        ("decoder", Scheme("static", "uint8", "channel"), "int8/fp32,int8"),
        ("encoder", Scheme("dynamic", "uint8", "channel"), "fp32/int8,int8"),
        ("encoder", STATIC, "int8,fp32"),
    ],
)
def test_the_folder_computes_what_was_trained(
    make_student: Make, tmp_path: Path, block: str, scheme: Scheme, precisions: str
) -> None:
    student, workshop = make_student(block, scheme, precisions)
    found = write_onnx(student, workshop.tokens["select"], tmp_path / "out", (2, 16), threads=1)
    files = ["model.onnx", "model_with_past.onnx"] if block == "decoder" else ["model.onnx"]
    assert list(found) == files
    for parity in found.values():
        assert parity.fault is None
        assert 0 <= parity.kl < max(parity.kl_of_rounding / 10, 1e-5)
    said = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert said["model.onnx"]["answers"] == found["model.onnx"].answers > 40
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [entry.name for entry in graph.input] == ["input_ids", "attention_mask"]
    # As many products in int8 as the plan has linear layers.
    kinds = Counter(node.op_type for node in graph.node)
    matrices = len(student.quantised)
    if scheme.activations == "dynamic":
        assert kinds["MatMulInteger"] == matrices
    else:
        weights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2}
        assert len(weights) == matrices
    script = (tmp_path / "out" / "run.py").read_text()
    assert WIDE_PRODUCTS[0] in script  # products in eight bits, without overflow
    assert script.index('if not cpu.exists() or "vnni" not in cpu.read_text():') < script.index(WIDE_PRODUCTS[0])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "out" / "run.py")], capture_output=True, text=True, check=True
    )
    assert "2 x 16 tokens: " in done.stdout
    assert "in the middle of 21, by CPUExecutionProvider" in done.stdout
    for phase in PHASES if block == "decoder" else ():  # as a generation is measured
        run = prepare_graph(tmp_path / "out" / files[1], Workload(2, 16, 4), student.architecture.vocab, 1, phase)
        run()


@pytest.mark.parametrize(("scheme", "plan"), [(DYNAMIC, "int8,fp32"), (STATIC, "int8,fp32"), (DYNAMIC, "int4/w8a16")])
def test_graphs_are_valid_and_name_no_file_of_this_machine(
    make_student: Make, tmp_path: Path, scheme: Scheme, plan: str
) -> None:
    student, workshop = make_student("decoder", scheme, plan)
    for name in write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1):
        graph = onnx.load(tmp_path / "out" / name)
        onnx.checker.check_model(graph)
        assert b".py" not in graph.SerializeToString()


@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_weights_of_seven_bits_where_eight_would_overflow(make_student: Make, tmp_path: Path, weights: str) -> None:
    scheme = Scheme("dynamic", "uint8", weights, weight_bits=7)  # type: ignore[arg-type]
    student, workshop = make_student("decoder", scheme, "int8,int8")
    write_onnx(student, workshop.tokens["select"], tmp_path / "out", (2, 16), threads=1)  # a failed parity is an error
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    matrices = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    ends = [int(np.abs(values.astype(int)).max()) for values in matrices if values.ndim == 2]
    assert len(ends) == len(student.quantised)
    assert set(ends) == {64}  # two products with 255 stay below 2 ** 15
    assert WIDE_PRODUCTS[0] not in (tmp_path / "out" / "run.py").read_text()


def test_weights_alone_in_four_and_eight_bits(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("decoder", DYNAMIC, "int4/w8a16,int8/fp32")
    found = write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)
    assert found["model.onnx"].kl_of_rounding > 1e-4
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    assert (kinds["MatMulNBits"], kinds["DequantizeLinear"], kinds["MatMulInteger"]) == (4, 3, 4)


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC])
def test_weights_alone_in_eight_bits_leave_activations_as_they_are(
    make_student: Make, tmp_path: Path, scheme: Scheme
) -> None:
    student, workshop = make_student("decoder", scheme, "w8a16")
    found = write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)
    assert found["model.onnx"].kl_of_rounding > 1e-5
    assert found["model.onnx"].kl < 1e-2 * found["model.onnx"].kl_of_rounding


def test_int8_behind_int4(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("encoder", DYNAMIC, "int4/int8,int8")
    assert write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)


def test_half_precision_beside_int8(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("decoder", STATIC, "int8,fp32", Precision.FP16)
    found = write_onnx(student, workshop.tokens["select"], tmp_path / "out", (2, 24), threads=1, static=True)
    assert found["model.onnx"].half
    assert found["model.onnx"].kl_from_float < 1.25 * found["model.onnx"].kl_of_rounding
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 24]
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}


@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_what_is_small_in_float16_is_not_rounded_to_nothing(make_student: Make, weights: str) -> None:
    """Norms with small weights, folded into the matrices behind them, leave whole channels under 0.0078."""
    scheme = replace(STATIC, weights=weights)
    student, _ = make_student("decoder", scheme, "int8,fp32", Precision.FP16)
    with torch.no_grad():
        for layer in student.quantised.values():
            layer.weight.mul_(1e-3 / layer.weight.abs().max(1, keepdim=True).values)
            layer.low.fill_(-1e-3)
            layer.high.fill_(1e-3)
    graph = onnx_model(student.model, student.teacher.objective, scheme, half=True).graph
    there = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    name, layer = next(iter(student.quantised.items()))
    (node,) = (node for node in graph.node if module_of(node) == name and node.op_type == "MatMul")
    given, weight = (next(n for n in graph.node if node.input[i] in n.output) for i in (0, 1))
    assert there[given.input[1]].astype(float) == pytest.approx(1e-3 / 127, rel=0.01)
    rounded, scale = there[weight.input[0]].astype(float), there[weight.input[1]].astype(float)
    np.testing.assert_allclose(rounded * scale, layer.weight.detach().numpy().T, rtol=0, atol=1e-3 / 127)


def test_positions_turn_in_float32_beside_halves(make_student: Make) -> None:
    student, _ = make_student("decoder", STATIC, "int8,fp32", Precision.FP16)
    model = onnx_model(student.model, student.teacher.objective, student.scheme, half=True)
    exact = student.model.get_buffer("model.rotary_emb.inv_freq").numpy()
    assert not np.array_equal(exact, exact.astype(np.float16))
    there = [numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer]
    assert any(array.dtype == np.float32 and np.array_equal(array, exact) for array in there)


def test_a_row_that_sees_nothing_has_numbers_in_float16(make_student: Make) -> None:
    """Where all its scores are negative: a mask of the lowest number there is would make them infinite."""
    student, _ = make_student("decoder", STATIC, "int8,fp32", Precision.FP16)
    graph = onnx_model(student.model, student.teacher.objective, student.scheme, half=True).graph
    masks = [numpy_helper.to_array(tensor).ravel() for tensor in graph.initializer]
    added = {float(value[0]) for value in masks if value.dtype == np.float16 and value.size == 1 and value[0] < -1e4}
    assert added == {-3e4}
    assert np.isfinite(np.float16(-3e4) * 2 - np.float16(1000))


@pytest.mark.parametrize("block", ["encoder", "decoder"])
def test_it_is_the_network_that_was_priced(make_student: Make, tmp_path: Path, block: str) -> None:
    """After ONNX Runtime's optimisation the export has the kernels of the graph that latencies are measured on."""
    student, _ = make_student(block, DYNAMIC, "int8,fp32")
    exported = _kernels(
        onnx_model(student.model, student.teacher.objective, student.scheme, shape=(1, 24)), tmp_path / "exported.onnx"
    )
    priced = _kernels(build_graph(student.architecture, Workload(1, 24)), tmp_path / "priced.onnx")
    # A residual in front of a norm is fused with it or not; BERT's first norm is priced as one behind the last layer.
    norms = ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization")
    assert sum(exported.pop(kind, 0) for kind in norms) == sum(priced.pop(kind, 0) for kind in norms) == 5
    heavy = ("MatMul", "FusedMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLinear",
             "Softmax", "Gelu", "BiasGelu", "QuickGelu")  # fmt: skip
    assert {kind: exported[kind] for kind in heavy} == {kind: priced[kind] for kind in heavy}
    assert exported["MatMulIntegerToFloat"] + exported["DynamicQuantizeMatMul"] == len(student.quantised)


def _kernels(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """How many kernels of each kind ONNX Runtime makes of a graph."""
    import onnxruntime

    onnxruntime.InferenceSession(
        model.SerializeToString(), keeping(options_of(1), path), providers=["CPUExecutionProvider"]
    )
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_padding_changes_no_answer(make_student: Make, tmp_path: Path) -> None:
    import onnxruntime

    student, _ = make_student("encoder", DYNAMIC, "fp32,fp32")
    path = tmp_path / "model.onnx"
    onnx.save(onnx_model(student.model, student.teacher.objective, student.scheme), path)
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1, 300, (3, 9))
    short = opened.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    padded, mask = np.pad(ids, ((0, 0), (0, 7))), np.pad(np.ones_like(ids), ((0, 0), (0, 7)))
    np.testing.assert_allclose(opened.run(None, {"input_ids": padded, "attention_mask": mask})[0], short, atol=1e-5)


def test_the_student_is_not_changed(make_student: Make) -> None:
    student, _ = make_student("decoder", STATIC, "int8,fp32")
    ids = torch.arange(20).reshape(1, 20)
    with torch.inference_mode():
        before = student.model(ids).logits
        onnx_model(student.model, student.teacher.objective, student.scheme, half=True)
        assert torch.equal(student.model(ids).logits, before)
    assert student.quantised


def test_every_product_knows_its_module(make_student: Make) -> None:
    student, _ = make_student("decoder", DYNAMIC, "fp32,fp32")
    names = [
        module_of(node)
        for node in onnx_model(student.model, student.teacher.objective, DYNAMIC).graph.node
        if node.op_type == "MatMul"
    ]
    linear = [name for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert set(linear) <= set(names)


def test_what_computes_something_else_is_an_error_and_leaves_nothing(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("decoder", STATIC, "int8,fp32")
    write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)
    before = (tmp_path / "out" / "model.onnx").read_bytes()
    # Ranges that are not those by which the student computes: what a wrong scale in the graph would be.
    wrong = _with_other_ranges(student)
    with pytest.raises(ExportError, match="does not compute what the student computes"):
        write_onnx(wrong, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_last_bits_make_of_a_student_is_the_most_of_some_copies(make_student: Make) -> None:
    student, workshop = make_student("decoder", DYNAMIC, "int8,fp32")
    texts = list(texts_of(student, workshop.tokens["select"], (1, 8)))
    objective, before = student.teacher.objective, copy.deepcopy(student.model.state_dict())
    own = partial(student_whole, objective)
    most = of_last_bits(own, student.model, objective.choices, texts)
    wide = compare(
        own(student.model), None, own(copy.deepcopy(student.model).double()), objective.choices, texts, False
    )
    assert 0 < wide.kl < most < 1e-3
    assert all(torch.equal(weight, before[name]) for name, weight in student.model.state_dict().items())


def test_a_graph_need_not_be_nearer_than_the_student_is_to_itself_where_last_bits_differ(
    make_student: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsearch.export.parity.SHARE", 0.0)
    monkeypatch.setattr("hwsearch.export.parity.NOTHING", 0.0)
    monkeypatch.setattr("hwsearch.export.parity.ARITHMETIC", 100.0)
    student, workshop = make_student("decoder", STATIC, "int8,fp32")
    found = write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)["model.onnx"]
    assert found.student == "float64"
    assert 0 < found.kl_of_arithmetic < found.kl_of_rounding / 100
    with pytest.raises(ExportError, match="does not compute what the student computes"):
        write_onnx(_with_other_ranges(student), workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)


def _with_other_ranges(student: TrainedStudent) -> TrainedStudent:
    """Whose graph is written by other ranges than the student computes by."""
    import copy

    class Drifting(type(student)):  # type: ignore[misc]
        @property
        def quantised(self) -> object:
            return student.quantised

    model = copy.deepcopy(student.model)
    for module in model.modules():
        if hasattr(module, "_range"):
            low, high = module.low.clone() / 4, module.high.clone() / 4
            module._range = lambda x, dim, low=low, high=high: (low, high)
    return Drifting(student.teacher, student.architecture, student.scheme, model)


def flat(logits: torch.Tensor, _: Any) -> torch.Tensor:
    return logits.flatten(end_dim=1)


def test_a_graph_that_gives_no_numbers_is_an_error() -> None:
    logits, texts = torch.randn(2, 3, 5), [(torch.zeros(2, 3), torch.ones(2, 3))]

    def beside(factor: float) -> str | None:
        return compare(lambda *_: logits, None, lambda *_: logits * factor, flat, texts, half=True).fault

    assert "not finite" in str(beside(np.nan))
    assert beside(1.0) is None


def test_half_precision_is_checked_in_float32_first(make_student: Make, tmp_path: Path) -> None:
    """Beside float16 a graph that leaves the student's parts in float would pass."""
    student, workshop = make_student("decoder", STATIC, "int8,fp32", Precision.FP16)
    with pytest.raises(ExportError, match="does not compute what the student computes"):
        write_onnx(_with_other_ranges(student), workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)


def test_float16_alone_is_checked_in_float32_first(
    make_student: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside float16 a fault of a thousandth would pass."""
    student, workshop = make_student("decoder", STATIC, "fp16,fp16", Precision.FP16)
    assert write_onnx(student, workshop.tokens["select"], tmp_path / "sound", (1, 8), threads=1)["model.onnx"].half

    def slightly_wrong(model: "PreTrainedModel", *others: Any) -> onnx.ModelProto:
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.get_submodule("model.layers.1.self_attn.o_proj").weight.mul_(0.98)
        return onnx_model(wrong, *others)

    monkeypatch.setattr("hwsearch.export.onnx.onnx_model", slightly_wrong)
    with pytest.raises(ExportError, match=r"logits differ by .* 1e-04 at most"):
        write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)
    monkeypatch.setattr("hwsearch.export.parity.RELATIVE", {False: 1.0, True: 2e-2})
    assert write_onnx(student, workshop.tokens["select"], tmp_path / "out", (1, 8), threads=1)


def test_texts_that_fill_a_fixed_batch_up_are_no_answers(make_student: Make, tmp_path: Path) -> None:
    student, workshop = make_student("encoder", DYNAMIC, "fp32,int8")
    chunks = workshop.tokens["select"][:5]
    found = write_onnx(student, chunks, tmp_path / "out", (32, 24), threads=1, static=True)["model.onnx"]
    assert found.answers == student.teacher.objective.labels(chunks).size
    assert found.kl_of_rounding > 0


def test_schemes_that_onnx_has_no_form_for(make_student: Make) -> None:
    student, _ = make_student("decoder", STATIC, "int8,fp32")
    with pytest.raises(ExportError, match="trained for int8 beside float32"):
        onnx_model(student.model, student.teacher.objective, Scheme("dynamic", "int8", "channel"))
    for module in student.quantised.values():
        module.high.zero_()
        module.low.zero_()
    with pytest.raises(ExportError, match="without ranges"):
        onnx_model(student.model, student.teacher.objective, STATIC)


def _parity(**changed: float) -> Parity:
    fine = {
        "answers": 100, "difference": 1e-3, "kl": 1e-5, "kl_of_rounding": 1e-2, "kl_from_float": 1e-2,
        "disagreements": 1, "margin": 0.01, "step": 0.1, "half": False,
    }  # fmt: skip
    return Parity(**(fine | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 3, 24, 128])
def test_a_text_in_some_goes_is_whole(tokens: int) -> None:
    places = [place for start, end in goes(torch.zeros(1, tokens)) for place in range(start, end)]
    assert places == list(range(tokens))
    assert all(start < end for start, end in goes(torch.zeros(1, tokens)))
    assert len(goes(torch.zeros(1, 128))) == 16


def test_what_is_a_fault() -> None:
    assert _parity().fault is None
    assert "KL from the student" in str(_parity(kl=2e-3).fault)
    # A student whose last bits grow is that far from itself in float64.
    assert _parity(kl=2e-3, kl_of_arithmetic=1.1e-3).fault is None
    assert "KL from the student" in str(_parity(kl=2e-3, kl_of_arithmetic=0.9e-3).fault)
    assert "changes where it leads" in str(_parity(margin=0.2).fault)
    # One that is farther from itself than the tenth changes answers itself.
    assert "changes where it leads" in str(_parity(margin=0.2, kl_of_arithmetic=0.4e-3).fault)
    assert _parity(margin=0.2, kl_of_arithmetic=0.6e-3).fault is None
    assert "logits differ" in str(_parity(kl_of_rounding=0.0).fault)
    assert _parity(kl_of_rounding=0.0, difference=5e-5).fault is None
    assert _parity(kl=2e-3, half=True).fault is None
    assert "from the float student" in str(_parity(kl_from_float=2e-2, half=True).fault)
    # Of few answers the mean is a draw: 1.25 times what rounding causes and two standard errors.
    assert _parity(kl_from_float=2e-2, half=True, unsure=3.8e-3).fault is None
    assert "from the float student" in str(_parity(kl_from_float=2e-2, half=True, unsure=3.7e-3).fault)


def test_how_sure_a_rise_is_goes_by_its_spread_over_answers() -> None:
    plain, rng = torch.zeros(8, 50, 4), torch.Generator().manual_seed(0)
    wanted, found = (0.1 * torch.randn(8, 50, 4, generator=rng) for _ in range(2))
    parity = compare(lambda *_: wanted, lambda *_: plain, lambda *_: found, flat, [None], True)  # type: ignore[list-item]
    first, second = (kl_of_each(plain, logits) for logits in (wanted, found))
    assert parity.kl_from_float - parity.kl_of_rounding == pytest.approx(float((second - first).mean()))
    assert parity.unsure == pytest.approx(float((second - first).std()) / 20)
    assert parity.unsure > 0


def test_an_answer_is_judged_by_what_rounding_does_to_it() -> None:
    """Where quantisation moves an answer's own logits by more than its lead, another one is no fault."""
    plain = torch.zeros(50, 4)
    plain[:, 0] = 1.0
    wanted, found = plain + 0.05, plain + 0.05

    def parity(moved: float) -> Parity:
        student, graph = wanted.clone(), found.clone()
        student[7, :2] = torch.tensor([0.5, 0.4]) + moved  # leads by 0.1
        graph[7, :2] = torch.tensor([0.5, 0.51]) + moved
        before = plain.clone()
        before[7] = student[7]
        before[7, 0] += moved
        texts = [{"input_ids": torch.zeros(1)}]
        return compare(lambda _: student, lambda _: before, lambda _: graph, lambda logits, _: logits, texts, False)

    assert parity(0.3).margin == pytest.approx(0.1, abs=1e-6)
    assert parity(0.3).step == pytest.approx(0.3, abs=1e-6)
    assert parity(0.0).step == pytest.approx(0.05, rel=0.05)  # that of all
    assert parity(0.0).margin > parity(0.0).step


@pytest.mark.parametrize("memory", [False, True])
def test_what_stands_for_transformers_stays_where_a_graph_fails(
    make_student: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    student, workshop = make_student("decoder", STATIC, "int8,fp32")
    state = tmp_path / "state.pt"
    rest = {"optimizer": {}, "step": 8, "seconds": 1.0, "curve": []}
    torch.save({"model": student.model.state_dict(), **rest}, state)
    monkeypatch.setattr("hwsearch.export.parity.SHARE", 0.0)
    monkeypatch.setattr("hwsearch.export.parity.NOTHING", 0.0)
    monkeypatch.setattr("hwsearch.export.parity.ARITHMETIC", 0.0)
    if memory:
        monkeypatch.setattr("hwsearch.export.onnx.onnx.save", Mock(side_effect=MemoryError("4 GiB")))
    to = tmp_path / "student"
    with pytest.raises(GraphError, match="(?s)4 GiB.*For Transformers" if memory else "For Transformers it stands in"):
        deliver(workshop, student.architecture, state, to, "onnxruntime", Workload(1, 8), 1, True)
    assert (to / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not (to / "onnx").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt", "student"]
    monkeypatch.setattr("hwsearch.export.parity.RELATIVE", {False: -1.0, True: -1.0})
    with pytest.raises(ExportError, match=r"model\.safetensors") as failure:
        deliver(workshop, student.architecture, state, tmp_path / "none", "onnxruntime", Workload(1, 8), 1, True)
    assert not isinstance(failure.value, GraphError)
    assert not (tmp_path / "none").exists()
