"""What a study says of itself, so that others can work on it: what is asked, on which device, of which task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hwsearch.architecture import Architecture
from hwsearch.device import DeviceProfile, Target
from hwsearch.distill.job import Facts, TaskSpec
from hwsearch.errors import CasesError, RunError
from hwsearch.latency.tables import table_of_target
from hwsearch.search.plan import Plan, Wishes
from hwsearch.search.rates import best, rates_of
from hwsearch.search.run import differences
from hwsearch.search.study import Study
from hwsearch.search.summary import versions
from hwsearch.search.trainer import Progress, Trainer, complete, result_of


def describe(
    study: Study, plan: Plan, facts: Facts, identity: dict[str, Any], spec: TaskSpec, folder: Path, main: str
) -> None:
    """Keep all that another worker must know; `main` is the owner that chooses in the end.

    Raises:
        RunError: the study is of another search.
    """
    known = study.described().get("identity", identity)
    if known != identity:
        raise RunError(
            f"study {study.name!r} is of another search: {differences(known, identity)}. Choose another --study"
        )
    study.describe(  # what it is known by last: others may read while it is written
        spec=spec,
        wishes=plan.resolved,
        profile=plan.profile,
        target=plan.target,
        folder=str(folder.resolve()),
        measures=plan.measures,
        began=False,
        weights=facts.weights,
        text=facts.text,
        main=main,
        identity=identity,
    )


def asked_of(study: Study) -> tuple[int, float | None]:
    """How many trials are asked for, and when no further rung is begun, in seconds since 1970, None without a limit: as
    the main job's last session has it, which may have begun after a worker's."""
    known = study.described()
    return int(known["wishes"]["trials"]), known.get("until")


class Description:
    """What `describe` kept.

    Args:
        study: in which it stands.

    Attributes:
        spec: of the task.
        folder: of the run, on the machine of the main job.
        profile, target: of the device.
        main: the owner that chooses in the end.
        weights, text: hashes of the teacher and of the text.
        rate: at which its students learn, over the recipe's.
        ready: trials have begun: where students are measured, some are before that.

    Raises:
        RunError: the study was not begun by a search.
    """

    def __init__(self, study: Study) -> None:
        self.name, self._known = study.name, study.described()
        if "identity" not in self._known:
            raise RunError(f"study {study.name!r} was not begun by hwsearch search")
        try:
            self.spec = msgspec.convert(self._known["spec"], TaskSpec)
            self.folder = Path(self._known["folder"])
            self.profile = msgspec.convert(self._known["profile"], DeviceProfile)
            self.target = msgspec.convert(self._known["target"], Target)
            self.main = self._known["main"]
            self.weights, self.text = self._known["weights"], self._known["text"]
            self.ready, self.rate = bool(self._known.get("began")), best(rates_of(self._known))
            self._wishes = msgspec.convert(self._known["wishes"], Wishes)
        except (KeyError, msgspec.ValidationError) as error:
            begun = self._known["identity"].get("versions", {}).get("hwsearch", "another")
            raise RunError(
                f"study {study.name!r} was begun by hwsearch {begun}, which describes one otherwise than the one here "
                f"({versions()['hwsearch']}): {error}. Use that one, or search anew with another --out"
            ) from error

    def open(self, trainer: Trainer, progress: Progress) -> tuple[Facts, Plan]:
        """The task on this machine, complete, and what the price decides, as the main job has it.

        Args:
            trainer: of the task.
            progress: who is told.

        Raises:
            RunError: the study was begun with another teacher, text, recipe or other versions than are here.
        """
        facts = result_of(trainer.open())
        self._check(facts.digest)
        facts = complete(trainer, facts, progress)
        plan = Plan(
            self._wishes,
            self.profile,
            self.target,
            facts.architecture,
            self._known["measures"],
            {Architecture.from_json(architecture): ratio for architecture, ratio in self._known.get("learned", [])},
        )
        plan.rate = self.rate
        return facts, plan

    def _check(self, task: str) -> None:
        identity = self._known["identity"]
        try:
            table = table_of_target(self.profile, self.target)
        except CasesError as error:
            raise RunError(
                f"study {self.name!r} is priced by a table that was measured on the main job's machine, which is not "
                f"here ({error}); its workers run on that machine"
            ) from error
        same = "give it the same: --teacher, --data, --eval, --trust-remote-code, constraints.txt"
        for what, there, here, way in (
            ("teacher, text or recipe", identity["task"], task, same),
            (
                "points of a latency table",
                identity["table"],
                table.digest if table else None,
                "put back the table that it was begun with, or search anew with another --out",
            ),
            ("versions", identity["versions"], versions(), same),
        ):
            if there != here:
                raise RunError(
                    f"study {self.name!r} was begun with other {what} ({there}) than are here ({here}); {way}"
                )
