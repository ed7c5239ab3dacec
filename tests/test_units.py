import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UnitError
from hwsearch.units import Budget, format_ms, format_seconds, parse_budget, parse_ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [("280ms", 280.0), ("1.5s", 1500.0), ("250us", 0.25), (" 2 min ", 120_000.0), ("1e2ms", 100.0), (".5s", 500.0)],
)
def test_times_are_read(text: str, ms: float) -> None:
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["280", "ms", "-3ms", "0ms", "3 parsecs", "", "1e999s", "3ms4"])
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnitError) as error:
        parse_ms(text)
    assert "\n" not in str(error.value)
    assert repr(text) in str(error.value) or "unit" in str(error.value)


def test_a_missing_unit_is_suggested() -> None:
    with pytest.raises(UnitError, match="Did you mean 280ms"):
        parse_budget("280")


def test_budgets_are_times_or_shares() -> None:
    assert parse_budget("0.25x") == Budget(share=0.25)
    assert parse_budget("0.25x").resolve(1000.0) == 250.0
    assert parse_budget("280ms").resolve(1000.0) == 280.0
    with pytest.raises(UnitError, match="no time that can be counted"):
        parse_budget("1e308x").resolve(1000.0)
    with pytest.raises(UnitError):
        parse_budget("0x")


@given(st.floats(1e-4, 1e9))
def test_what_is_printed_can_be_read_again(ms: float) -> None:
    assert parse_ms(format_ms(ms)) == pytest.approx(ms, rel=6e-3)


def test_numbers_are_printed_with_three_digits() -> None:
    assert [format_ms(ms) for ms in (0.0421, 1.234, 56.78, 283.4, 90_000.0)] == [
        "42.1 us",
        "1.23 ms",
        "56.8 ms",
        "283 ms",
        "90.0 s",
    ]
    assert format_seconds(75) == "1:15"
    assert format_seconds(3725) == "1:02:05"
