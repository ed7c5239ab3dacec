import pytest
import torch
from torch import Tensor

from hwsearch.distill.losses import POSITIONS, head_kl, kl, positionwise_kl

COUNT, WIDTH, VOCAB = POSITIONS + 37, 8, 40


def reference(hidden: Tensor, weight: Tensor, indices: Tensor, p: Tensor) -> Tensor:
    """The same, as a chain of ordinary operations."""
    q = torch.softmax(hidden @ weight.T, -1)
    top, rest = q.gather(-1, indices), 1 - p.sum(-1)
    return (p * (p.log() - top.log())).sum(-1) + rest * (rest.log() - (1 - top.sum(-1)).log())


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*size, generator=generator, dtype=torch.double) for size in ((COUNT, WIDTH), (VOCAB, WIDTH))
    )
    teacher = torch.softmax(torch.randn(COUNT, VOCAB, generator=generator, dtype=torch.double) * 2, -1)
    p, indices = teacher.topk(6)
    return hidden.requires_grad_(), weight.requires_grad_(), indices, p


def test_value_and_gradients_are_those_of_the_plain_loss(problem: tuple[Tensor, ...]) -> None:
    hidden, weight, indices, p = problem
    loss = head_kl(hidden, weight, indices, p)
    (3 * loss).backward()
    found = hidden.grad.clone(), weight.grad.clone()  # type: ignore[union-attr]
    hidden.grad = weight.grad = None
    plain = reference(hidden, weight, indices, p).mean()
    (3 * plain).backward()
    assert loss.item() == pytest.approx(plain.item())
    assert torch.allclose(found[0], hidden.grad)  # type: ignore[arg-type]
    assert torch.allclose(found[1], weight.grad)  # type: ignore[arg-type]


def test_evaluation_is_the_same_loss_by_position(problem: tuple[Tensor, ...]) -> None:
    hidden, weight, indices, p = problem
    losses, best = positionwise_kl(hidden, weight, indices, p)
    assert torch.allclose(losses, reference(hidden, weight, indices, p))
    assert torch.equal(best, (hidden @ weight.T).argmax(-1))


def test_the_loss_is_zero_where_student_and_teacher_agree() -> None:
    hidden, weight = torch.randn(50, WIDTH), torch.randn(VOCAB, WIDTH)
    p, indices = torch.softmax(hidden @ weight.T, -1).topk(8)
    assert head_kl(hidden, weight, indices, p).item() == pytest.approx(0.0, abs=1e-5)


def test_a_hopeless_student_has_a_finite_loss_and_gradient() -> None:
    hidden, weight = (200 * torch.randn(50, WIDTH)).requires_grad_(), torch.randn(VOCAB, WIDTH)
    p, indices = torch.softmax(torch.randn(50, VOCAB), -1).topk(8)
    loss = head_kl(hidden, weight, indices, p)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_a_probability_that_was_rounded_to_zero_has_a_gradient() -> None:
    logits = torch.tensor([[3.0, -20.0, -200.0]], requires_grad=True)
    p = torch.tensor([[1.0, 0.0, 0.0]])
    loss = kl(torch.softmax(logits, -1), torch.tensor([[0, 1, 2]]), p).sum()
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.allclose(logits.grad, (torch.softmax(logits, -1) - p).detach(), atol=1e-6)
