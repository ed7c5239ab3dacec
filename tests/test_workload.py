import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.architecture import Architecture, Layer, uniform_layers
from hwsearch.precision import Precision
from hwsearch.workload import COLUMNS, DECODE_TOKEN, KIND, PREFILL, Workload, concatenate, lower
from tests.test_architecture import architectures

BERT = Architecture("encoder", 768, 64, uniform_layers(12, 12, 12, 3072, [(Precision.FP16, Precision.FP16)] * 12))
workloads = st.builds(Workload, st.integers(1, 8), st.integers(1, 64), st.integers(0, 5), st.integers(1, 3))


def test_flops_of_bert_base_are_those_of_the_textbook() -> None:
    table = lower([BERT], Workload(batch=2, sequence=128))
    tokens, width, ffn = 256, 768, 3072
    products = 12 * (2 * tokens * (4 * width * width + 2 * width * ffn))
    scores = 12 * (4 * tokens * 128 * width)
    assert (table.flops * table.count).sum() == products + scores
    assert (table.weight_bytes * table.count).sum() == 12 * 2 * (4 * width * width + 2 * width * ffn)


def test_equal_layers_are_counted_not_repeated() -> None:
    table = lower([BERT], Workload())
    assert set(table.count) == {12.0}
    assert len(table.m) == 7


@settings(max_examples=40, deadline=None)
@given(st.lists(architectures, min_size=1, max_size=5), workloads)
def test_many_are_lowered_as_one_by_one(found: list[Architecture], workload: Workload) -> None:
    together, apart = lower(found, workload), concatenate([lower([a], workload) for a in found])
    assert together.size == apart.size == len(found)
    assert np.array_equal(together.passes, apart.passes)
    orders = [np.lexsort([getattr(t, name) for name in reversed(COLUMNS)]) for t in (together, apart)]
    for name in COLUMNS:
        assert np.array_equal(getattr(together, name)[orders[0]], getattr(apart, name)[orders[1]]), name


def test_a_decoding_step_reads_the_cache_and_the_whole_weights() -> None:
    table = lower([BERT], Workload(batch=3, sequence=100, new_tokens=1))
    step = table.phase == DECODE_TOKEN
    attention = step & (table.kind == KIND["attention"])
    assert table.m[attention] == 3
    assert table.n[attention] == 101
    assert table.weight_bytes[attention] == 2 * 3 * 101 * 768 * 4  # keys and values of the whole context, kept in fp32
    prefill = ~step & (table.kind == KIND["qkv"])
    assert table.weight_bytes[prefill] == table.weight_bytes[step & (table.kind == KIND["qkv"])]


def test_only_a_lone_pass_gives_logits_of_every_position() -> None:
    model = Architecture("decoder", 64, 32, (Layer(2, 2, 64, Precision.FP32, Precision.FP32),), vocab=100, head="lm")
    rows = {new: lower([model], Workload(4, 16, new)) for new in (0, 2)}
    head = {new: table.m[(table.kind == KIND["head"]) & (table.phase == PREFILL)] for new, table in rows.items()}
    assert head[0] == 64
    assert head[2] == 4


@pytest.mark.parametrize(
    ("plan", "changes"),
    [("fp16*3", 0), ("int8*3", 2), ("fp16,int8,fp16", 2), ("int8/fp16*3", 6), ("fp16,fp16,int8", 2)],
)
def test_changes_of_precision_are_counted_along_the_network(plan: str, changes: int) -> None:
    from hwsearch.architecture import parse_precisions

    model = Architecture("encoder", 64, 32, uniform_layers(3, 2, 2, 64, parse_precisions(plan, 3)))
    table = lower([model], Workload())
    assert table.count[table.kind == KIND["cast"]].sum() == changes


def test_workloads_are_checked_and_read_well() -> None:
    assert str(Workload(64, 128, 0, 256)) == "256 x (batch 64 x 128 tokens)"
    assert Workload(64, 128, 0, 256).tokens == 2_097_152
    with pytest.raises(ValueError, match="at least 1"):
        Workload(batch=0)


def test_products_inside_attention_may_be_in_float_beside_int8() -> None:
    """As exports for TensorRT have them."""
    plan = [(Precision.INT8, Precision.INT8), (Precision.FP16, Precision.INT8), (Precision.W8A16, Precision.FP16)]
    model = Architecture(
        "encoder", 64, 32, uniform_layers(3, 2, 2, 64, plan), embedding_precision=Precision.FP16,
        head_precision=Precision.FP16,
    )  # fmt: skip
    own, beside = (lower([model], Workload(4, 16), float_products=float_) for float_ in (False, True))
    inside = own.kind == KIND["attention"]
    before, after = (sorted(table.precision[inside].tolist()) for table in (own, beside))
    assert before == sorted(p.code for p in (Precision.INT8, Precision.FP16, Precision.W8A16))
    assert after == sorted(p.code for p in (Precision.FP16, Precision.FP16, Precision.W8A16))
    assert np.array_equal(own.precision[~inside], beside.precision[~inside])
