"""Where a student that was made by hand does as well as the chosen one, or better: the report says so."""

from __future__ import annotations

from typing import Any


def rivals(document: dict[str, Any]) -> list[str]:
    """A sentence for each student made by hand that gets more right than the chosen one.

    As in the choice, answers do not tell those apart whose quality lies inside the other's interval: then the KL to the
    teacher does, which is known far better.
    """
    chosen, found = document["chosen"], []
    for name, made in document["baselines"].items() if chosen else ():
        if made["quality"] <= chosen["quality"]:
            continue
        if made["quality"] > chosen["quality_high"] or made["loss"] <= chosen["loss"]:
            found.append(f"Made by hand is better here: {name}.")
        else:
            found.append(
                f"Made by hand gets more right here, by less than these answers can tell: {name}. Its KL to the "
                f"teacher is {made['loss']:.3f}, the chosen student's {chosen['loss']:.3f}."
            )
    return found
