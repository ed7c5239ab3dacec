"""Heads and units where they matter most: as many as before, every layer with its share."""

from pathlib import Path

import numpy as np
import pytest

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.errors import ProfileError
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.search.null import TEACHER, NullTrainer
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.precision import part_times, with_plan
from hwsearch.search.uneven import allot, uneven
from hwsearch.units import Budget
from hwsearch.workload import Workload
from tests.cli.test_cli import document, line_of, run

IMPORTANCE = NullTrainer().finish().result().importance
PLAIN = [(Precision.FP16, Precision.FP16)] * 4


def student() -> Architecture:
    return Architecture(
        block="decoder", width=96, head_dim=32, layers=uniform_layers(4, 4, 2, 256, PLAIN), gated_ffn=True,
        norm="rmsnorm", tied=False, vocab=2048, head="lm",
    )  # fmt: skip


def test_the_most_important_come_first() -> None:
    assert allot([np.array([5.0, 4.0, 3.0]), np.array([9.0, 1.0, 0.5])], 4, 1) == [3, 1]
    assert allot([np.array([5.0, 1.0]), np.array([5.0, 1.0])], 2, 1) == [1, 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_there_are_as_many_as_in_the_uniform_student(share: float) -> None:
    found = uneven(student(), (0, 1, 3, 5), IMPORTANCE, 32, share)
    assert sum(layer.ffn for layer in found.layers) == 4 * 256
    assert sum(layer.kv_heads for layer in found.layers) == 8
    assert all(layer.heads == 2 * layer.kv_heads for layer in found.layers)
    assert all(layer.ffn % 32 == 0 and layer.ffn >= 32 for layer in found.layers)
    assert found.uniform == (share == 0)
    sizes = [layer.ffn for layer in found.layers]
    assert sizes == sorted(sizes)  # the null teacher's later layers matter more


def test_times_of_parts_add_up_where_layers_differ() -> None:
    profile = find_profile("jetson-orin")
    estimator = Estimator(profile, profile.target(), Workload(64, 128, 0, 256))
    a = uneven(student().with_float(Precision.FP16), (0, 1, 3, 5), IMPORTANCE, 32, 0.8)
    times = part_times([a], (Precision.FP16, Precision.INT8), lambda options: estimator(options).median_ms)
    whole = with_plan(a, [1] * 8, (Precision.FP16, Precision.INT8))
    real = estimator.one(whole).median_ms - estimator.one(a).median_ms
    assert times.parts[0, :, 1].sum() + 2 * times.changes[0, 0, 1] == pytest.approx(real, rel=0.02)
    assert len(set(times.parts[0, 1::2, 1].round(6))) > 1


def test_proposals_are_uneven_where_that_is_wished() -> None:
    profile, facts = find_profile("jetson-orin"), NullTrainer().finish().result()
    wishes = Wishes(budget=Budget(ms=400.0), workload=Workload(64, 128, 0, 256), uneven=True)
    proposer = Plan(wishes, profile, profile.target(), TEACHER).proposer(facts)
    options = proposer.options(4, 1.0, 1.0, 1.0, 0.7)
    assert any(not a.uniform for a in options)
    assert all(a.uniform for a in proposer.options(4, 1.0, 1.0, 1.0))
    assert {corner["uneven"] for corner in proposer.corners()} == {0.0, 0.5}


def test_runtimes_without_graphs_are_refused() -> None:
    profile = find_profile("jetson-orin")
    wishes = Wishes(budget=Budget(ms=400.0), workload=Workload(), uneven=True)
    with pytest.raises(ProfileError, match="run as graphs"):
        Plan(wishes, profile, profile.target("pytorch"), TEACHER)


def test_an_uneven_student_is_found_trained_and_exported_as_a_graph(
    tmp_path: Path, tiny_teacher: Path, text_file: Path
) -> None:
    out = tmp_path / "run"
    found = document(
        "--device", "jetson-orin", "--budget", "0.9x", "--teacher", str(tiny_teacher), "--data", str(text_file),
        "--batch", "512", "--sequence", "64", "--trials", "12", "--steps", "8", "--uneven", "--out", str(out),
    )  # fmt: skip
    uneven_trials = [f for f in found["front"] if "mixed" in f["architecture"]["id"]]
    trial = uneven_trials[0]["trial"] if uneven_trials else None
    if "mixed" in found["chosen"]["architecture"]["id"]:
        assert (out / "chosen" / "model.onnx").is_file()
        trial = found["chosen"]["trial"]
    assert trial is not None
    status, _, err = run("export", str(out), "--trial", str(trial), "--to", str(tmp_path / "hf"))
    assert status == 1
    assert "stock Transformers loads layers of one shape alone" in line_of(err)
    said = document("export", str(out), "--trial", str(trial), "--to", str(tmp_path / "g"), "--format", "tensorrt")
    assert said["parity"]["model.onnx"]["answers"] > 100
