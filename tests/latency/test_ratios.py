import math
from random import Random

import numpy as np
import pytest

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.latency.ratios import Ratios
from hwsearch.precision import Precision


def shaped(depth: int = 4, width: int = 128, heads: int = 4, ffn: int = 256) -> Architecture:
    layers = uniform_layers(depth, heads, heads, ffn, [(Precision.FP32, Precision.FP32)] * depth)
    return Architecture("encoder", width, 32, layers, False, "layernorm")


def factor(ratios: Ratios, architecture: Architecture) -> float:
    (found,) = np.asarray(ratios([architecture]))
    return float(found)


def test_nothing_is_put_right_where_nothing_was_measured() -> None:
    assert Ratios({})([shaped()]) == 1.0
    assert Ratios({}).everywhere == 1.0


def test_what_all_are_off_by_holds_everywhere() -> None:
    measured = [shaped(depth, heads=heads, ffn=ffn) for depth in (2, 8) for heads in (1, 8) for ffn in (128, 1024)]
    ratios = Ratios(dict.fromkeys(measured, math.log(1.5)))
    assert factor(ratios, shaped(depth=24, width=1024, heads=32, ffn=8192)) == pytest.approx(1.5, rel=0.05)
    assert ratios.everywhere == pytest.approx(1.5, rel=0.05)


def test_a_shape_is_off_as_its_neighbours_are() -> None:
    few, many = shaped(depth=2, heads=1), shaped(depth=8, heads=8)
    ratios = Ratios({few: math.log(0.85), many: math.log(1.05)})
    assert factor(ratios, few) == pytest.approx(0.85, rel=0.02)
    assert factor(ratios, shaped(depth=2, heads=1, width=144)) == pytest.approx(0.85, rel=0.02)
    assert factor(ratios, many) == pytest.approx(1.05, rel=0.02)
    between = factor(ratios, shaped(depth=4, heads=3))
    assert 0.87 < between < 1.03
    assert 0.9 < ratios.everywhere < 1.0


def test_the_order_of_measuring_changes_no_bit() -> None:
    rng = Random(0)
    known = [(shaped(depth=n, width=32 * n), rng.uniform(-0.2, 0.2)) for n in range(1, 9)]
    forth, back = Ratios(dict(known[:3])), Ratios({})
    forth.learn(dict(known[3:]))
    for architecture, ratio in reversed(known):
        back.learn({architecture: ratio})
    asked = [shaped(depth=n) for n in range(1, 6)]
    assert np.asarray(forth(asked)).tolist() == np.asarray(back(asked)).tolist()


def test_layers_of_different_sizes_count_by_their_means() -> None:
    wide, narrow = shaped(depth=1, ffn=512).layers[0], shaped(depth=1, ffn=128).layers[0]
    uneven = Architecture("encoder", 128, 32, (wide, narrow), False, "layernorm")
    ratios = Ratios({shaped(depth=2, ffn=320): -0.2, shaped(depth=12, ffn=2048): 0.0})
    assert factor(ratios, uneven) == factor(ratios, shaped(depth=2, ffn=320))
