"""How many training steps a second several processes take together, on one GPU where there is one.

Each trains a student of 4 x 96 of the embedded teacher in int8, one thread each.

python benchmarks/sharing.py [--processes 1 4 12] [--seconds 6] [--device cuda:0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from multiprocessing import get_context
from typing import Any

import torch
from steps import student

from hwsearch.distill.job import TaskSpec
from hwsearch.distill.workshop import Workshop
from hwsearch.precision import Precision
from hwsearch.profiles import find_profile


def workshop(device: str) -> Workshop:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return Workshop(TaskSpec(scheme=find_profile("jetson-orin").runtimes["tensorrt"].scheme), device)


def train(device: str, seconds: float, told: Any, begin: Any) -> None:
    one = student(workshop(device).task, 4, 96, (4, 2), 256, Precision.INT8, device)
    one.train(10)
    told.put(0)
    begin.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        one.train(one.step + 1)
    told.put(one.step - 10)


def steps_a_second(processes: int, device: str, seconds: float) -> float:
    context = get_context("spawn")
    told, begin = context.Queue(), context.Event()
    started = [context.Process(target=train, args=(device, seconds, told, begin)) for _ in range(processes)]
    for process in started:
        process.start()
    for _ in started:
        told.get()
    begin.set()
    steps = sum(told.get() for _ in started)
    for process in started:
        process.join()
    return round(steps / seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    workshop(options.device).finish()  # computed once
    found = {}
    for processes in options.processes:
        found[processes] = steps_a_second(processes, options.device, options.seconds)
        print(f"{processes} processes: {found[processes]} steps a second", file=sys.stderr)
    print(json.dumps({"device": options.device, "steps_a_second": found}))


if __name__ == "__main__":
    main()
