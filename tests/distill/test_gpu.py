"""GPUs: how many processes share one, and what only a GPU can show: skipped where there is none."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hwsearch.architecture import uniform_layers
from hwsearch.distill import gpus as gpus_module
from hwsearch.distill import teacher as teacher_module
from hwsearch.distill import workers as workers_module
from hwsearch.distill.checkpoint import Checkpoint, embedded_teacher
from hwsearch.distill.gpus import CONTEXT, PER_WEIGHT, at_once, free_bytes
from hwsearch.distill.job import Job, TaskSpec
from hwsearch.distill.proxy import Student, load_state
from hwsearch.distill.workers import MOST, Workers
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision, Scheme
from tests.distill.test_proxy import small_task, student_shape

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = "cuda:0"


@pytest.fixture
def spec(tiny_teacher: Path, text_file: Path) -> TaskSpec:
    return replace(small_task(tiny_teacher, text_file), scheme=Scheme("static", "int8", "channel"))


def test_a_gpu_is_shared_as_far_as_its_memory_goes() -> None:
    teacher = Checkpoint(embedded_teacher())
    each = CONTEXT + PER_WEIGHT * sum(count for _, count in teacher.weights())
    assert each > CONTEXT + PER_WEIGHT * 10**6
    assert [at_once(teacher, free) for free in (None, 0, each, 3 * each - 1, 80 * 2**30)] == [
        1, 1, 1, 2, 80 * 2**30 // each,
    ]  # fmt: skip


def test_processes_are_no_more_than_cores_or_gpus(spec: TaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = workers_module._wanted
    monkeypatch.setattr(workers_module, "gpus", lambda: 2)
    monkeypatch.setattr(workers_module, "free_bytes", lambda: 40 * 2**30)
    assert [wanted(spec, cores) for cores in (1, 2, 6, 16)] == [2, 2, 6, 16]
    monkeypatch.setattr(workers_module, "free_bytes", lambda: 2**30)
    assert wanted(spec, 16) == 2
    monkeypatch.setattr(workers_module, "gpus", lambda: 0)
    assert wanted(spec, 3) == 3


def test_without_the_drivers_tool_free_memory_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus_module, "FREE", ("hwsearch-has-no-such-tool",))
    assert free_bytes() is None
    monkeypatch.setattr(gpus_module, "FREE", ("echo", "no devices were found"))
    assert free_bytes() is None
    monkeypatch.setattr(gpus_module, "FREE", ("printf", "81079\\n140\\n"))
    assert free_bytes() == 140 * 2**20
    # Under WSL the driver shows its GPUs by its tool alone.
    monkeypatch.setattr(gpus_module, "version", lambda name: "2.13.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not Path("/proc/driver/nvidia/gpus").exists():
        assert gpus_module.gpus() == 2
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(subprocess.TimeoutExpired("", 1)))
    assert free_bytes() is None


@on_gpu
def test_the_driver_tells_what_is_free() -> None:
    free = free_bytes()
    assert free is not None
    assert 0.8 < free / torch.cuda.mem_get_info(0)[0] < 1.2


@on_gpu
@pytest.mark.parametrize("plan", ["fp32", "int8", "w8a16", "int4"])
def test_a_student_learns_there_what_it_learns_here(spec: TaskSpec, plan: str, tmp_path: Path) -> None:
    here, there = Workshop(spec), Workshop(spec, CUDA)
    student = Student(here.task, student_shape(here, plan))
    before = student.score(here.task.select).loss
    student.train(60)
    other = Student(there.task, student_shape(there, plan), device=CUDA)
    assert other.score(there.task.select).loss == pytest.approx(before, rel=1e-3)
    other.train(40)
    other.keep(tmp_path / "state.pt")
    again = Student(there.task, student_shape(there, plan), device=CUDA, kept=load_state(tmp_path / "state.pt"))
    again.train(60)
    after = again.score(there.task.select).loss
    assert after < 0.9 * before
    assert after == pytest.approx(student.score(here.task.select).loss, rel=0.05)


@on_gpu
@pytest.mark.parametrize("share", [None, 0.5])
def test_the_first_pass_says_the_same_there(
    spec: TaskSpec, share: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whole on the GPU, and half of it beside."""
    here, there = Workshop(spec), Workshop(spec, CUDA)
    if share:
        held = sum(weight.nbytes for weight in there.teacher.model.parameters())
        monkeypatch.setattr(teacher_module, "_room", lambda _: {0: int(share * held), "cpu": 2**34})
    chunks = here.tokens["select"]
    own = teacher_module.teacher_outputs(here.teacher, chunks, tmp_path / "here")
    found = teacher_module.teacher_outputs(there.teacher, chunks, tmp_path / "there", CUDA)
    assert np.mean(own.best() == found.best()) > 0.99
    model = there.teacher.at(CUDA)
    places = {str(weight.device) for weight in model.parameters()}
    assert places == ({CUDA} if share is None else {CUDA, "meta"})  # what is beside is brought when it is needed
    there.teacher.let_go()
    assert there.teacher.at(CUDA) is not model


@on_gpu
def test_eight_bit_weights_there(tmp_path: Path) -> None:
    """The embedded teacher: one of random weights hardly prefers one answer."""
    pytest.importorskip("bitsandbytes")
    exact, eight = Workshop(TaskSpec()), Workshop(TaskSpec(teacher_dtype="int8"), CUDA)
    chunks = exact.tokens["select"][:64]
    own = teacher_module.teacher_outputs(exact.teacher, chunks, tmp_path / "own")
    found = teacher_module.teacher_outputs(eight.teacher, chunks, tmp_path / "eight", CUDA)
    assert eight.teacher.at(CUDA).model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    assert np.mean(own.best() == found.best()) > 0.97


@on_gpu
def test_workers_share_it(spec: TaskSpec, tmp_path: Path) -> None:
    workers = Workers(spec, 3)
    try:
        facts = workers.open().result()
        for future in workers.prepare(facts.blocks):
            future.result()
        facts = workers.finish().result()
        layers = uniform_layers(2, 4, 2, 64, [(Precision.INT8, Precision.INT8)] * 2)
        small = replace(facts.architecture, width=64, tied=False, layers=layers)
        jobs = [Job(architecture=small, steps=steps, path=str(tmp_path / f"{steps}.pt")) for steps in (8, 16, 32)]
        scores = [future.result().loss for future in [workers.train(job) for job in jobs]]
    finally:
        workers.close()
    assert scores[0] > scores[1] > scores[2]
    assert 1 <= Workers(spec).count <= MOST
