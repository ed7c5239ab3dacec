"""Products of integers are the runtime's, exactly, and their gradients those of float32 but for bfloat16's rounding."""

import pytest
import torch
from torch import nn

from hwsearch.distill import products
from hwsearch.distill.losses import head_kl
from hwsearch.distill.products import are_fast
from hwsearch.distill.quantise import apart, quantise
from hwsearch.precision import Scheme

SCHEMES = [
    Scheme("dynamic", "uint8", "channel"),
    Scheme("dynamic", "uint8", "tensor", weight_bits=7),
    Scheme("static", "int8", "channel"),
    Scheme("static", "uint8", "tensor"),
]


@pytest.fixture(autouse=True)
def instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow or fast, every processor multiplies the same."""
    monkeypatch.setattr(products, "_has_instructions", lambda: True)


def layer(scheme: Scheme, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    part = nn.ModuleDict({"a": nn.Linear(37, 19, bias=bias)})
    quantise(part, ["a"], scheme)
    return part["a"]  # type: ignore[return-value]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_integers_are_multiplied_exactly(scheme: Scheme, bias: bool, groups: int) -> None:
    one = layer(scheme, bias)
    x = torch.randn(6, 5, 37) * torch.arange(1, 7).view(6, 1, 1)
    one.train()(x)
    one.eval()
    with apart(groups), torch.inference_mode():
        found = one(x)
        rounded, weight = one.rounded(x)  # type: ignore[operator]
    wanted = rounded.double() @ weight.double().T + (0 if one.bias is None else one.bias.double())
    assert found.shape == (6, 5, 19)
    assert (found - wanted).abs().max() < 4e-7 * wanted.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_those_of_float32(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    x, slopes = torch.randn(4, 8, 37), torch.randn(4, 8, 19)
    found = []
    for instructed in (True, False):
        monkeypatch.setattr(products, "_has_instructions", lambda instructed=instructed: instructed)
        one, own = layer(scheme), x.clone().requires_grad_()
        assert are_fast(own) == instructed
        one(own).backward(slopes)
        assert one.bias is not None
        found.append((own.grad, one.weight.grad, one.bias.grad))
    for fast, plain in zip(*found, strict=True):
        assert fast is not None
        assert plain is not None
        assert (fast - plain).norm() < 0.01 * plain.norm()


def test_a_heads_gradients_are_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 24), torch.randn(90, 24)
    probabilities, indices = torch.randn(300, 90).softmax(-1).topk(8)
    found = []
    for instructed in (True, False):
        monkeypatch.setattr(products, "_has_instructions", lambda instructed=instructed: instructed)
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = head_kl(h, w, indices, probabilities)
        loss.backward()
        found.append((loss.detach(), h.grad, w.grad))
    assert found[0][0] == found[1][0]
    for fast, plain in zip(found[0][1:], found[1][1:], strict=True):
        assert fast is not None
        assert plain is not None
        assert 0 < (fast - plain).norm() < 0.01 * plain.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floats_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    one = layer(SCHEMES[0]).to(dtype)
    x = torch.randn(4, 37, dtype=dtype)
    assert not are_fast(x)
    assert torch.equal(one(x), nn.functional.linear(*one.rounded(x), one.bias))  # type: ignore[operator]
