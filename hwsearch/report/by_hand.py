"""Where a student that was made by hand does as well as the chosen one, or better: the report says so."""

from __future__ import annotations

from typing import Any

from hwsearch.search.result import Result, retains_more


def rivals(document: dict[str, Any]) -> list[str]:
    """A sentence for each student made by hand that is better than the chosen one, or gets more right.

    As in the choice, where neither surely retains more the KL to the teacher tells them apart, which is known far
    better.
    """
    if not document["chosen"]:
        return []
    chosen, found = Result.from_json(document["chosen"]), []
    for name, entry in document["baselines"].items():
        made = Result.from_json(entry)
        more = (made.retention or 0.0) > (chosen.retention or 0.0)
        alike = not retains_more(chosen, made) and not retains_more(made, chosen)
        loss, least = made.loss or 0.0, chosen.loss or 0.0
        if loss < least if alike else more:
            found.append(f"Made by hand is better here: {name}.")
        elif more:
            found.append(
                f"Made by hand gets more right here, by less than these answers can tell: {name}. Its KL to the "
                f"teacher is {loss:.3f}, the chosen student's {least:.3f}."
            )
    return found
