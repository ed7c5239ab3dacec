"""Is a trial lost or trained twice when workers are killed? A PostgreSQL study of 60 trials with the null score.

The main job and two workers share the study; every so often one of the three is killed with SIGKILL and begun again. At
the end every trial must be there once, and no rung of any may have been finished twice.

python benchmarks/kills.py [--kills 10] [--trials 60] [--storage postgresql]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from hwsearch.distill.job import Job, ProxyScore, TaskSpec
from hwsearch.files import write_text
from hwsearch.profiles import find_profile
from hwsearch.search.main_job import run_search
from hwsearch.search.null import NullProgress, NullTrainer
from hwsearch.search.plan import Wishes
from hwsearch.search.study import Study
from hwsearch.search.worker import join
from hwsearch.units import Budget
from hwsearch.workload import Workload

NAME, WORKERS, SECONDS = "kills", 2, 0.3
STATES = {"sqlite": "sqlite:///{}/study.db", "journal": "{}/study.log"}


class Slow(NullTrainer):
    """Takes its time, and writes down every rung that it has finished. As the true trainer it keeps a state, from
    which nothing is trained again."""

    def __init__(self, log: Path) -> None:
        super().__init__(count=2)
        self.log, self.pool = log, ThreadPoolExecutor(2)

    def train(self, job: Job) -> Future[ProxyScore]:
        def work() -> ProxyScore:
            state = Path(job.path)
            if not state.is_file() or int(state.read_text()) < job.steps:
                time.sleep(SECONDS * random.uniform(0.5, 1.5))
                with self.log.open("a") as file:
                    file.write(f"{state.name} {job.steps}\n")
                write_text(state, str(job.steps))
            return super(Slow, self).train(job).result()

        return self.pool.submit(work)


def play(role: str, storage: str, folder: Path, trials: int) -> None:
    """One of the three processes."""
    trainer = Slow(folder / "log.txt")
    if role == "worker":
        join(Study(storage, NAME, make=False), lambda _: trainer, NullProgress())
        return
    profile = find_profile("jetson-orin")
    wishes = Wishes(budget=Budget(ms=500.0), workload=Workload(64, 128, 0, 256), trials=trials)
    run_search(
        profile,
        profile.target(),
        wishes,
        TaskSpec(),
        trainer,
        NullProgress(),
        lambda *_: None,
        folder / "run",
        storage=storage,
        name=NAME,
    )


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A server of its own on the loopback, gone at the end."""
    where, port = folder / "pg", random.randint(20_000, 40_000)
    where.mkdir()
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(where, "postgres")
        folder.chmod(0o755)

    def run(*command: str) -> None:
        subprocess.run([*user, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run("initdb", "-D", str(where), "-U", "search", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={where} -c fsync=off"
    run("pg_ctl", "-D", str(where), "-o", options, "-l", str(where / "log"), "-w", "start")
    try:
        yield f"postgresql://search@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(where), "-m", "immediate", "stop")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--storage", choices=["postgresql", *STATES], default="postgresql")
    parser.add_argument("--role", nargs=3, help="of a new process")
    options = parser.parse_args()
    if options.role:
        role, storage, where = options.role
        play(role, storage, Path(where), options.trials)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.storage == "postgresql":
            with postgresql(folder) as storage:
                result = attack(storage, folder, options.kills, options.trials)
        else:
            result = attack(STATES[options.storage].format(folder), folder, options.kills, options.trials)
    print(json.dumps({"storage": options.storage, **result}))


def attack(storage: str, folder: Path, kills: int, trials: int) -> dict[str, object]:
    def start(role: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--trials", str(trials), "--role", role, storage, str(folder)]
        return subprocess.Popen(command)

    roles = ["search", *["worker"] * WORKERS]
    processes = [start(roles[0])]
    while not (folder / "log.txt").is_file():
        time.sleep(0.2)
    processes += [start(role) for role in roles[1:]]
    study, rng, killed, started = Study(storage, NAME), random.Random(0), 0, time.monotonic()
    while processes[0].poll() != 0:
        time.sleep(0.2)
        done = sum(bool(trial.losses) for trial in study.trials())
        if killed < kills and done > (killed + 0.5) * trials / (kills + 1):
            victim = rng.randrange(len(processes))
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()
            killed += 1
            processes[victim] = start(roles[victim])
    seconds = time.monotonic() - started
    for process in processes[1:]:
        process.wait()
    found = study.trials()
    study.close()
    finished = Counter((folder / "log.txt").read_text().splitlines())
    rungs = {name: n for name, n in finished.items() if "long" not in name and not name.split("-")[0].isalpha()}
    return {
        "kills": killed,
        "trials": len(found),
        "lost": trials - sum(trial.ended for trial in found),
        "architectures": len({trial.architecture for trial in found}),
        "rungs": len(rungs),
        "rungs_finished_twice": sum(n > 1 for n in rungs.values()),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
