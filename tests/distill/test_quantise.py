"""The fake rounding against the arithmetic that a runtime does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwsearch.distill.quantise import (
    RANGE_MOMENTUM,
    QuantisedLinear,
    apart,
    in_groups,
    on_grid,
    quantise,
    restore,
    settle,
)
from hwsearch.export.parity import session
from hwsearch.precision import Scheme

DYNAMIC = Scheme("dynamic", "uint8", "tensor")
STATIC = Scheme("static", "int8", "channel")


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(24, 12, bias=False)


def quantised(layer: nn.Linear, scheme: Scheme) -> QuantisedLinear:
    quantise(nn.ModuleDict({"layer": layer}), ["layer"], scheme)
    assert isinstance(layer, QuantisedLinear)
    return layer


def test_a_dynamic_layer_computes_what_onnx_runtime_computes(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layer, x = linear(), torch.randn(5, 24) + 0.3
    scale = float(layer.weight.detach().abs().max()) / 127
    weights = np.round(layer.weight.detach().numpy() / scale).clip(-127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 12])],
        [numpy_helper.from_array(weights.T.copy(), "w"), numpy_helper.from_array(np.array(scale, np.float32), "ws")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "model.onnx")
    real = session(tmp_path / "model.onnx").run(None, {"x": x.numpy()})[0]

    layer = quantised(layer, DYNAMIC)
    assert np.allclose(layer(x).detach().numpy(), real, atol=1e-4)


def test_weights_of_four_bits_are_onnx_runtimes_ties_and_all() -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight, group = torch.randint(-64, 65, (48, 160), generator=torch.Generator().manual_seed(0)) / 256, 32
    packed, count = np.zeros((48, 5, group // 2), np.uint8), 48 * 5
    scales, zeros = np.zeros(count, np.float32), np.zeros(48 * 3, np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.numpy().T), scales, zeros, group, 48, 160, False)
    values = np.stack([packed & 15, packed >> 4], -1).reshape(48, 5, group).astype(np.float32)
    zero = np.stack([zeros & 15, zeros >> 4], -1).reshape(48, 6)[:, :5, None].astype(np.float32)
    wanted = ((values - zero) * scales.reshape(48, 5, 1)).reshape(48, 160)
    assert np.allclose(in_groups(weight, group).numpy(), wanted, atol=1e-6)


def test_parts_of_a_batch_have_ranges_of_their_own_as_if_seen_one_after_the_other() -> None:
    layer, x = quantised(linear(), DYNAMIC), torch.randn(6, 5, 24)
    x[0] *= 4
    layer.eval()
    with torch.no_grad():
        one_by_one = torch.cat([layer(each) for each in x.split(2)])
        whole = layer(x)
        with apart(3):
            assert torch.allclose(layer(x.clone()), one_by_one, atol=1e-6)
            assert torch.allclose(layer(x.flatten(0, 1)), one_by_one.flatten(0, 1), atol=1e-6)
        assert not torch.allclose(whole, one_by_one, atol=1e-3)
        assert torch.equal(layer(x.clone()), whole)


def test_weights_and_static_activations_lie_on_their_grids() -> None:
    layer, x = linear(), torch.randn(7, 24)
    original = layer.weight.detach().clone()
    layer = quantised(layer, STATIC)
    layer.train()
    layer(x)
    layer.eval()
    scales = original.abs().amax(1, keepdim=True) / 127
    weights = (original / scales).round() * scales
    reach = float(torch.maximum(-layer.low, layer.high))
    inputs = (x / (reach / 127)).round().clamp(-128, 127) * (reach / 127)
    assert torch.allclose(layer(x), inputs @ weights.T, atol=1e-5)
    beyond = 3 * x  # QuantizeLinear saturates one step further down than up
    inputs = (beyond / (reach / 127)).round().clamp(-128, 127) * (reach / 127)
    assert float(inputs.min()) == pytest.approx(-128 / 127 * reach)
    assert torch.allclose(layer(beyond), inputs @ weights.T, atol=1e-5)


def test_ties_are_rounded_to_the_side_that_onnx_runtime_takes() -> None:
    from onnx import TensorProto
    from onnxruntime.quantization.quant_utils import quantize_nparray

    scales = np.linspace(0.001, 0.1, 97, dtype=np.float32)[:, None]
    ties = (np.arange(-127, 127, dtype=np.float32) + 0.5) * scales
    ours = on_grid(torch.from_numpy(ties), torch.from_numpy(scales)).numpy() / scales
    assert np.array_equal(ours.round(), quantize_nparray(TensorProto.INT8, ties, scales, 0))


def test_a_static_range_is_learnt_in_training_and_kept_in_use() -> None:
    layer = linear()
    layer = quantised(layer, STATIC)
    layer.train()
    for _ in range(3):
        layer(torch.ones(2, 24))
    layer.eval()
    layer(100 * torch.ones(2, 24))
    assert float(layer.high) == pytest.approx(1.0)
    layer.train()
    layer(torch.tensor([[-2.0, 3.0]]).repeat(2, 12))
    assert float(layer.low) == pytest.approx(-2 * (1 - RANGE_MOMENTUM))
    assert float(layer.high) == pytest.approx(RANGE_MOMENTUM + 3 * (1 - RANGE_MOMENTUM))
    assert set(layer.state_dict()) == {"weight", "low", "high"}


def test_gradients_pass_where_the_value_is_in_range() -> None:
    layer = linear()
    layer = quantised(layer, STATIC)
    layer.train()
    x = torch.randn(7, 24, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().sum()) > 0
    assert float(x.grad.abs().sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_no_gradient_passes_outside(shape: tuple[int, ...]) -> None:
    x = torch.tensor([[-9.0, -4.2, -1.0, 0.3, 2.9, 3.1, 7.0]], requires_grad=True)
    low, high = torch.tensor(-4.0).view(shape), torch.tensor(3.0).view(shape)
    found = on_grid(x, torch.tensor(1.0), (low, high))
    assert found.tolist() == [[-4, -4, -1, 0, 3, 3, 3]]
    (3 * found).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 3, 3, 3, 3, 3, 0]]  # what is rounded to an end lies inside


def test_restoring_gives_the_float_layer_back() -> None:
    layer, x = linear(), torch.randn(3, 24)
    before = layer(x)
    layer = quantised(layer, DYNAMIC)
    assert not torch.equal(layer(x), before)
    restore(layer)
    assert type(layer) is nn.Linear
    assert torch.equal(layer(x), before)
    assert set(layer.state_dict()) == {"weight"}


def test_settled_weights_lie_on_their_grid_but_for_an_embedding_s() -> None:
    torch.manual_seed(0)
    part = nn.ModuleDict({"own": nn.Linear(8, 6), "tokens": nn.Embedding(6, 8), "head": nn.Linear(8, 6, bias=False)})
    part["head"].weight = part["tokens"].weight
    quantise(part, ("own", "head"), DYNAMIC)
    before, x = part["tokens"].weight.clone(), torch.randn(4, 8)
    expected = part["own"](x)
    settle(part)
    assert torch.equal(part["tokens"].weight, before)
    torch.testing.assert_close(part["own"](x), expected)  # rounding once more changes nothing
    restore(part)
    largest = part["own"].weight.abs().max()
    steps = part["own"].weight * 127 / largest
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0.0)


def test_layers_that_read_the_same_input_round_it_once_and_alike() -> None:
    part = nn.ModuleDict({name: linear(i) for i, name in enumerate("qkv")})
    quantise(part, "qkv", STATIC)
    alone = [quantised(linear(i), STATIC) for i in range(3)]
    part.train()
    for round_ in range(3):
        x = torch.randn(5, 24) * (1 + round_)
        for name, single in zip("qkv", alone, strict=True):
            single.train()
            assert torch.equal(part[name](x), single(x))
            assert part[name].shared.given is x  # type: ignore[union-attr]
        assert part["q"].shared is part["v"].shared  # type: ignore[union-attr]
    part.eval()
    x = 9 * torch.randn(5, 24)
    for name, single in zip("qkv", alone, strict=True):
        assert torch.equal(part[name](x), single.eval()(x))
