"""A job of several processes on one machine:

    python -m experiments.launch --processes 2 --devices-per-process 4 -- NAME --workdir DIR ...

What follows ``--`` is the command line of experiments.train, the same for every process, with CPU
devices that talk through gloo: what a cluster does, in small. The first process's output is shown;
a signal is passed on, and when one process fails the others are ended.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

COORDINATOR = "JDEQ_COORDINATOR"
NUM_PROCESSES = "JDEQ_NUM_PROCESSES"
PROCESS_ID = "JDEQ_PROCESS_ID"
_GRACE_SECONDS = 15.0  # for the others, once one has failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices-per-process", type=int, default=1)
    parser.add_argument("command", nargs="+", help="NAME and options of experiments.train")
    options = parser.parse_args(argv)
    for name in ("processes", "devices_per_process"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1; got {getattr(options, name)}")
    return run(options.command, options.processes, options.devices_per_process)


def run(command: Sequence[str], processes: int, devices: int) -> int:
    """``experiments.train command`` in every process."""
    address = f"localhost:{_free_port()}"
    started = []
    for index in range(processes):
        env = os.environ | {
            COORDINATOR: address,
            NUM_PROCESSES: str(processes),
            PROCESS_ID: str(index),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *command],
                env=env,
                stdout=None if index == 0 else subprocess.DEVNULL,
                # Ctrl-C goes to this process, which passes it on as one SIGTERM.
                start_new_session=True,
            )
        )

    def pass_on(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return _wait(started)


def connect() -> None:
    """Join the other processes of the job, where this one was started as one of several.

    SLURM, TPU slices, Kubernetes and Open MPI are found by jax.distributed itself;
    `run` says who is who in the environment.
    """
    if COORDINATOR in os.environ:
        jax.distributed.initialize(
            os.environ[COORDINATOR],
            int(os.environ[NUM_PROCESSES]),
            int(os.environ[PROCESS_ID]),
        )
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise


def _wait(started: list[subprocess.Popen]) -> int:
    deadline, first = None, 0
    while any(process.poll() is None for process in started):
        failed = [process for process in started if process.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
            first = failed[0].returncode  # what the others then die of is not the reason
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.05)
    return first or next((p.returncode for p in started if p.returncode), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
