"""Where a student that was made by hand does as well as the chosen one, or better: the report says so."""

from __future__ import annotations

from typing import Any


def rivals(document: dict[str, Any]) -> list[str]:
    """A sentence for each student made by hand that is better than the chosen one, or gets more right.

    As in the choice, answers do not tell those apart whose quality lies inside the other's interval: then the KL to the
    teacher does, which is known far better.
    """
    chosen, found = document["chosen"], []
    for name, made in document["baselines"].items() if chosen else ():
        alike = chosen["quality_low"] <= made["quality"] <= chosen["quality_high"]
        if made["loss"] < chosen["loss"] if alike else made["quality"] > chosen["quality"]:
            found.append(f"Made by hand is better here: {name}.")
        elif made["quality"] > chosen["quality"]:
            found.append(
                f"Made by hand gets more right here, by less than these answers can tell: {name}. Its KL to the "
                f"teacher is {made['loss']:.3f}, the chosen student's {chosen['loss']:.3f}."
            )
    return found
