"""A runtime on one device: what it runs, how it quantises, and the parameters of its latency.

The parameters are fitted on whole-model timings by `hwsearch profile --from-cases`, each with its uncertainty and where
it comes from; what the timings cannot tell is borrowed, and says so.
"""

from __future__ import annotations

import math

import msgspec

from hwsearch.precision import Precision, Scheme


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number and where it comes from.

    Attributes:
        value: in the unit that its name says.
        source: a publication, a datasheet, or "fit" / "borrowed: ..." / "assumed: ..." for what was not read off
            anything.
        sd: standard deviation of the logarithm; 0 where the source is taken as exact.
    """

    value: float
    source: str
    sd: float = 0.0

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("every figure needs a source")
        if not 0 < self.value < float("inf") or not 0 <= self.sd < 10:
            raise ValueError(
                f"a figure is positive and finite, its sd between 0 and 10; got {self.value} and {self.sd}"
            )


class Hull(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes of the matrix products that one precision was measured on, each as (smallest, largest)."""

    m: tuple[float, float]
    k: tuple[float, float]
    n: tuple[float, float]

    def __post_init__(self) -> None:
        if not all(0 < low <= high < math.inf for low, high in (self.m, self.k, self.n)):
            raise ValueError(f"a hull's sizes are positive, the smaller first; got {self.m}, {self.k}, {self.n}")


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wrong a fit was on models that it had not seen.

    Attributes:
        rows: how many.
        mape: mean of |predicted / measured - 1|.
        coverage: share of the rows inside their 90 % interval.
    """

    rows: int
    mape: float
    coverage: float

    def __post_init__(self) -> None:
        if self.rows < 0 or not 0 <= self.mape < math.inf or not 0 <= self.coverage <= 1:
            raise ValueError(
                f"an error is of 0 rows or more, finite, its coverage between 0 and 1; got {self.rows}, {self.mape}, "
                f"{self.coverage}"
            )


WIDEST = 1e4  # variance of a parameter's logarithm
ROUNDED = 1e-3  # of the largest variance: what rounding in a file makes of one that is none
MEASURED = "measured on the device"  # where a fit's rows are from, in place of a file of cases


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runtime's parameters rest on.

    Attributes:
        cases: the file of measured latencies and the hash of its rows, or how they were measured.
        rows: how many of them belong to this runtime.
        models: their models.
        noise: standard deviation of the logarithm of measured over fitted.
        order: names of the parameters that were fitted, as "rate_tops.fp16".
        covariance: of their logarithms, [len(order), len(order)].
        hulls: the shapes that were measured, by precision.
        reach: the shapes that they and the lenders' span together: where the model's form has been seen to hold.
        stretch: factor that leaving models out put on the noise and on the fit's own doubt, 1 at least.
        leave_one_model_out: error by precision on each model when the fit had not seen it; empty for a single model.
        row_digests: a hash of each row, so that none counts twice.
        refined: whether the rows of the last call were added to an earlier fit.
    """

    cases: str
    rows: int
    models: tuple[str, ...]
    noise: float
    order: tuple[str, ...]
    covariance: tuple[tuple[float, ...], ...]
    hulls: dict[str, Hull] = {}
    reach: Hull | None = None
    stretch: float = 1.0
    leave_one_model_out: dict[str, Error] = {}
    row_digests: tuple[str, ...] = ()
    refined: bool = False

    def __post_init__(self) -> None:
        if any(len(row) != len(self.order) for row in self.covariance) or len(self.covariance) != len(self.order):
            raise ValueError(f"the covariance is a square of the {len(self.order)} fitted parameters")
        if not all(math.isfinite(x) for row in self.covariance for x in row) or any(
            not 0 <= row[i] <= WIDEST for i, row in enumerate(self.covariance)
        ):
            raise ValueError(f"the covariance is finite, its variances between 0 and {WIDEST:g}")
        if not _positive(self.covariance):
            raise ValueError("the covariance is symmetric, and no combination of parameters has a negative variance")
        if not (0 <= self.noise < math.inf and 1 <= self.stretch < math.inf):
            raise ValueError(f"noise is 0 at least and stretch 1, both finite; got {self.noise} and {self.stretch}")
        if unknown := [name for name in self.hulls if name not in set(map(str, Precision))]:
            raise ValueError(f"hulls go by precision; got {unknown[0]!r}")


def _positive(covariance: tuple[tuple[float, ...], ...]) -> bool:
    """Whether a matrix is a covariance, but for rounding."""
    if not covariance:
        return True
    import numpy as np

    matrix = np.array(covariance)
    slack = ROUNDED * float(np.diag(matrix).max())
    return bool(np.abs(matrix - matrix.T).max() <= slack and np.linalg.eigvalsh(matrix).min() >= -slack)


SCALARS = ("pass_us", "kernel_us", "bandwidth_gbs", "cache_speedup", "score_passes", "thread_exponent")
BY_PRECISION = ("rate_tops", "ramp_us", "attention_share")


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of the analytic latency model; `latency/analytic.py` has the formulas.

    Attributes:
        pass_us: what one forward pass costs before any work is done.
        kernel_us: what one kernel costs before any work is done.
        bandwidth_gbs: memory bandwidth reached, GB/s.
        cache_speedup: bandwidth of the last-level cache over the memory's.
        score_passes: how often an unfused attention moves its score matrix through memory.
        rate_tops: arithmetic rate reached by large matrix products, 1e12 operations/s, by precision of the arithmetic.
        ramp_us: what a product costs beside its arithmetic, by precision.
        attention_share: rate of attention's products over `rate_tops`.
        thread_exponent: the rate grows as threads to this power.
    """

    pass_us: Figure
    kernel_us: Figure
    bandwidth_gbs: Figure
    cache_speedup: Figure
    score_passes: Figure
    rate_tops: dict[str, Figure]
    ramp_us: dict[str, Figure]
    attention_share: dict[str, Figure]
    thread_exponent: Figure

    @property
    def names(self) -> list[str]:
        """Flat names, "rate_tops.fp16" for one that goes by precision."""
        grouped = [f"{group}.{precision}" for group in BY_PRECISION for precision in getattr(self, group)]
        return [*SCALARS, *grouped]


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One runtime on one device.

    Attributes:
        version: that the parameters stand for.
        precisions: those that it truly runs on this device, the widest first.
        fused_attention: whether the score matrix stays on chip.
        stored_bits: width of an activation in memory, by precision, where it is not the precision's own.
        scheme: how it quantises.
        int8_products: whether the cases that its parameters are of have attention's own products in int8 too, which
            exports leave in float: students are priced so.
        alignment: channels that the matrix units want a multiple of.
        threads: that the parameters stand for; 0 where there is nothing to choose.
        borrows: runtimes ("runtime" of the same device, or "device/runtime") whose parameters stand in for what the
            cases cannot tell; the datasheet where there are none.
        note: what a reader should know.
        table: its measured latency table, as "<device>/<runtime>" in `latency_tables`; empty where there is none.
        parameters, fit: made by `hwsearch profile`; None in a profile that holds facts alone so far.
    """

    version: str
    precisions: tuple[Precision, ...]
    fused_attention: bool
    scheme: Scheme
    stored_bits: dict[str, int] = {}
    int8_products: bool = False
    alignment: int = 16
    threads: int = 0
    borrows: tuple[str, ...] = ()
    note: str = ""
    table: str = ""
    parameters: Parameters | None = None
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if not any(precision.is_float for precision in self.precisions):
            raise ValueError("a runtime runs at least one float precision")
        if any(name not in set(map(str, Precision)) or bits < 1 for name, bits in self.stored_bits.items()):
            raise ValueError(f"stored_bits are 1 at least and go by precision; got {self.stored_bits}")
        if self.alignment < 1 or self.threads < 0:
            raise ValueError(f"alignment is 1 at least and threads 0; got {self.alignment} and {self.threads}")
        if self.parameters is None:
            return
        known = set(self.parameters.names)
        wanted = {f"{group}.{precision}" for group in BY_PRECISION for precision in self.arithmetics}
        if missing := sorted(wanted - known):
            raise ValueError(f"precisions need {missing[0]}, which is missing")
        if self.fit and (unknown := sorted(set(self.fit.order) - known)):
            raise ValueError(f"fit.order names {unknown[0]!r}, which is no parameter here")

    @property
    def measured(self) -> bool:
        """Whether it rests on what was measured on the device itself."""
        return self.fit is not None and MEASURED in self.fit.cases

    def float_beside(self, *precisions: Precision) -> Precision:
        """The float that the rest of a network runs in when its layers run in `precisions`: the narrowest among them,
        else the runtime's."""
        floats = [p for p in precisions if p.is_float] or [p for p in self.precisions if p.is_float]
        return max(floats, key=lambda precision: precision.code)

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """The precisions that it computes in, the widest first."""
        return tuple(dict.fromkeys(self.arithmetic(precision) for precision in self.precisions))

    def arithmetic(self, precision: Precision) -> str:
        """What a layer computes in: its own precision, or for quantised weights alone the narrowest float."""
        if precision in (Precision.W8A16, Precision.INT4):
            return "fp16" if Precision.FP16 in self.precisions else "fp32"
        return str(precision)
