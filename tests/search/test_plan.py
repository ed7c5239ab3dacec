"""What the price alone decides: budgets of a pass, of the first token and of each one after it, and memory."""

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.device import DeviceProfile
from hwsearch.errors import ArchitectureError, NothingFits
from hwsearch.latency.estimator import Estimator
from hwsearch.latency.latency import Latency
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile
from hwsearch.runtime import Figure
from hwsearch.search.baselines import hand_made, hand_made_as_run
from hwsearch.search.null import TEACHER, NullTrainer
from hwsearch.search.plan import Plan, Wishes, with_room
from hwsearch.search.proposer import Given
from hwsearch.search.result import memory_mib
from hwsearch.space import derive
from hwsearch.units import Budget, parse_budget
from hwsearch.workload import Workload

GENERATION = Workload(4, 256, 64)


def plan(profile: DeviceProfile | None = None, **budgets: str) -> Plan:
    profile = profile or find_profile("jetson-orin")
    parsed = {name: parse_budget(text) for name, text in {"budget": "10s", **budgets}.items()}
    return Plan(Wishes(workload=GENERATION, **parsed), profile, profile.target(), TEACHER)  # type: ignore[arg-type]


def test_each_budget_binds() -> None:
    free = plan(budget="10s")
    students = [free.space.build(d, 192, (6, 3), 512, [(p, p)] * d) for d in (1, 3, 6) for p in free.space.precisions]
    phases = [free.price.one(student).phases for student in students]
    for name, phase in (("budget_ttft", "prefill"), ("budget_tpot", "decode_token")):
        middle = float(np.median([p[phase] for p in phases]))
        bound = plan(**{name: f"{middle * 1.2}ms"})
        strain = bound.strain(students)
        holds = [bound.holds(bound.price.one(student)) for student in students]
        assert holds == [bool(s <= 1.0) for s in strain]
        assert any(holds)
        assert not all(holds)
        assert all(free.holds(free.price.one(student)) for student in students)


def test_a_share_is_of_the_teachers_own_phase() -> None:
    bound = plan(budget_tpot="0.5x")
    assert bound.phases_ms == {"decode_token": pytest.approx(0.5 * bound.teacher_latency.phases["decode_token"])}


@pytest.mark.parametrize(("name", "said"), [("budget_ttft", "prefill"), ("budget_tpot", "decode token")])
def test_what_nothing_can_meet_is_said(name: str, said: str) -> None:
    with pytest.raises(NothingFits, match=rf"{said}.*Raise --{name.replace('_', '-')}") as miss:
        plan(**{name: "1us"}).check()
    assert miss.value.details is not None


def test_keys_and_values_count_as_memory() -> None:
    layer = TEACHER.layers[0]
    kept = 4 * (256 + 64) * TEACHER.depth * 2 * layer.kv_heads * TEACHER.head_dim * 4 / 2**20
    few = replace(TEACHER, vocab=256)
    without = memory_mib(few, replace(GENERATION, new_tokens=0))
    assert memory_mib(few, GENERATION) == pytest.approx(without + kept)
    # A prompt's last position alone is asked for its next token.
    many = replace(TEACHER, vocab=2**17)
    without = memory_mib(many, replace(GENERATION, new_tokens=0))
    assert memory_mib(many, GENERATION) - many.size_mib < (without - many.size_mib) / 20


def test_students_by_hand_have_whole_heads_where_these_share_the_width() -> None:
    """Heads of 26 channels: few widths are multiples of them and of 16."""
    t4 = find_profile("t4")
    teacher = replace(
        TEACHER, block="encoder", norm="layernorm", gated_ffn=False, width=312, head_dim=26,
        layers=uniform_layers(4, 12, 12, 1200, [(Precision.FP32, Precision.FP32)] * 4),
    )  # fmt: skip
    space = derive(teacher, t4.runtimes["tensorrt"])
    price = Estimator(t4, t4.target(), Workload(8, 128))
    narrow = price.one(space.uniform(4, 104, (4, 4), 400, space.precisions[0])).median_ms
    made, missing = hand_made(space, price, 1.1 * narrow)
    assert "uniform width" in {one.name for one in made}, missing
    few = derive(teacher, t4.runtimes["tensorrt"], widths=(104, 156), heads=(4, 6))
    assert {one.name for one in hand_made(few, price, 1.1 * narrow)[0]} >= {"uniform width"}


def test_the_smallest_student_has_its_head_in_the_precision_that_is_fastest() -> None:
    """Layers as small as these are faster in float, the head is not."""
    pi, facts, short = find_profile("arm-cpu"), NullTrainer().finish().result(), Workload(1, 16)

    def plan(ms: float) -> Plan:
        return Plan(Wishes(budget=Budget(ms=ms), workload=short), pi, pi.target(), facts.architecture)

    space = plan(1.0).space
    sizes = (space.depths[0], space.widths[0], space.heads[0], space.ffns[0])
    uniform = [space.uniform(*sizes, precision) for precision in space.precisions]
    least = float((plan(1.0).strain(uniform)).min())
    found = float((plan(1.0).strain(space.smallest)).min())
    assert found < 0.98 * least
    tight = plan((found + least) / 2)
    tight.check()
    assert tight.proposer(facts)(Given(tight.proposer(facts).corners()[0]), ()) is not None
    with pytest.raises(NothingFits, match="Raise --budget"):
        plan(0.99 * found).check()


def test_students_by_hand_keep_the_limits_too() -> None:
    orin, facts = find_profile("jetson-orin"), NullTrainer().finish().result()
    generation = Workload(64, 128, 32)
    wide = Plan(Wishes(budget=Budget(share=0.5), workload=generation), orin, orin.target(), facts.architecture)
    made, missing = hand_made(wide.space, wide.price, wide.budget_ms, wide.keeps_limits)
    assert not missing.keys() & {one.name for one in made}
    by_name = {one.name: one.architecture for one in made}
    other = by_name["every other layer"]
    small = Wishes(budget=Budget(share=0.5), workload=generation, max_size_mib=0.5 * other.size_mib)
    phase = Wishes(
        budget=Budget(share=0.5),
        workload=generation,
        budget_ttft=Budget(ms=0.9 * wide.price.one(other).phases["prefill"]),
    )
    for wishes in (small, phase):
        plan = Plan(wishes, orin, orin.target(), facts.architecture)
        assert not plan.keeps_limits(other)
        found, missing = hand_made(plan.space, plan.price, plan.budget_ms, plan.keeps_limits)
        assert {*missing, *(one.name for one in found)} >= set(by_name)
        assert all(plan.keeps_limits(one.architecture) for one in found)


def test_a_student_by_hand_that_prices_kept_out_at_first_is_not_missing() -> None:
    """As estimated uniform width does not fit; what is measured of every other layer says that all are faster."""
    orin = find_profile("jetson-orin")
    space = derive(TEACHER, orin.runtimes["tensorrt"])
    price = Estimator(orin, orin.target(), Workload(64, 128))
    latency_ms = price.one(TEACHER).median_ms
    while "uniform width" not in hand_made(space, price, latency_ms)[1]:
        latency_ms *= 0.95

    def measure(architectures: Sequence[Architecture]) -> list[Latency]:
        found = [price.uncorrected([a]).times(0.7)[0] for a in architectures]
        price.learn(architectures, found)
        return found

    kept, missing = hand_made_as_run(space, price, measure, latency_ms)
    assert "uniform width" in {one.name for one in kept}
    assert not {one.name for one in kept} & set(missing)


def test_an_encoder_writes_nothing() -> None:
    orin = find_profile("jetson-orin")
    with pytest.raises(ArchitectureError, match="leave --new-tokens out"):
        Plan(Wishes(parse_budget("10s"), GENERATION), orin, orin.target(), replace(TEACHER, block="encoder"))


def test_where_the_teachers_proportions_do_not_fit_others_are_begun_with() -> None:
    orin, bulk = find_profile("jetson-orin"), Workload(64, 128, 0, 256)
    wide = Plan(Wishes(parse_budget("10s"), bulk, widths=(192,)), orin, orin.target(), TEACHER)
    least = float(wide.strain(wide.space.smallest).min()) * wide.budget_ms
    budget = parse_budget(f"{1.08 * least}ms")
    tight = Plan(Wishes(budget, bulk, widths=(192,)), orin, orin.target(), TEACHER)
    tight.check()
    proposer = tight.proposer(NullTrainer().finish().result())
    assert not any(proposer._fits(depth) for depth in tight.space.depths)
    found = [proposer(Given(corner), ()) for corner in proposer.corners()]
    assert found
    assert all(student is not None and tight.strain([student])[0] <= 1.0 for student in found)


def test_a_limit_of_size_is_asked_of_the_lightest() -> None:
    """A narrower student has a head of its own: with a large vocabulary the teacher's width is the lighter one."""
    orin, whole = find_profile("jetson-orin"), replace(TEACHER, vocab=32000)
    wishes = Wishes(parse_budget("10s"), GENERATION, widths=(160, 192), max_size_mib=16.0)
    found = Plan(wishes, orin, orin.target(), whole)
    assert min(a.size_mib for a in found.space.smallest) > 16.0 > min(a.size_mib for a in found.space.lightest)
    found.check()
    with pytest.raises(NothingFits, match="--max-size-mib is 1"):
        Plan(replace(wishes, max_size_mib=1.0), orin, orin.target(), whole).check()


def test_a_student_that_the_device_cannot_hold_does_not_fit() -> None:
    profile = find_profile("jetson-orin")
    small = replace(profile, memory_mib=Figure(1.0, "made up"))
    with pytest.raises(NothingFits, match=r"limits of size and memory.*the device has 1 MiB"):
        plan(small).check()
    assert not plan(small).admits(TEACHER)


def test_a_share_that_launching_kernels_forbids_is_asked_of_more_sequences() -> None:
    """Six narrow layers take half a millisecond on T4 however short the text."""
    small = Architecture(
        block="encoder", width=384, head_dim=32, layers=uniform_layers(6, 12, 12, 1536, [(Precision.FP32,) * 2] * 6),
        vocab=30522, head="classify",
    )  # fmt: skip
    t4 = find_profile("t4")
    lone = Wishes(parse_budget("0.3x"), Workload(1, 128))
    with pytest.raises(NothingFits):
        Plan(lone, t4, t4.target(), small).check()
    wider = with_room(lone, t4, t4.target(), small)
    assert 1 < wider.workload.batch <= 64
    Plan(wider, t4, t4.target(), small).check()
    for wishes in (Wishes(parse_budget("0.1ms"), Workload(1, 128)), Wishes(parse_budget("0.8x"), Workload(1, 128))):
        assert with_room(wishes, t4, t4.target(), small) == wishes


@pytest.mark.parametrize("device", ["jetson-orin", "t4", "graviton3"])
@pytest.mark.parametrize("workload", [Workload(), Workload(4, 64), Workload(64, 128, 0, 256)])
def test_a_budget_that_is_raised_as_told_holds_something(device: str, workload: Workload) -> None:
    profile = find_profile(device)
    with pytest.raises(NothingFits) as miss:
        Plan(Wishes(parse_budget("1us"), workload), profile, profile.target(), TEACHER).check()
    told = str(miss.value).rpartition("Raise --budget to ")[2].replace(" ", "")
    Plan(Wishes(parse_budget(told), workload), profile, profile.target(), TEACHER).check()
