"""Several processes of one run, as a launcher starts them, but forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["finetune.run", "finetune.cli", "pytest"])


def train(path, fault=None, count=2, seconds=200):
    """`finetune train path` on `count` processes; (exit codes, what each wrote to stderr).

    What follows the results and takes long is left out: pictures, report, and the verification in one more process. So
    is the measuring of energy. fault(rank) is called in each process before it begins. Processes
    that have not ended in time are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [path.with_name(f"stderr-{rank}.txt") for rank in range(count)]
    started = [
        CONTEXT.Process(target=_become, args=(rank, count, port, path, logs[rank], dict(os.environ), fault))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(seconds)
    for process in started:
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in started], [log.read_text(encoding="utf-8") for log in logs]


def _become(rank, count, port, path, log, environment, fault):
    os.environ.update(environment)
    if count > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    sys.argv = ["finetune", "train", str(path), "--quiet"]
    from finetune import cli, finish, run
    from finetune.carbon import Carbon

    for name in ("verify", "write_report", "_draw_pictures"):
        setattr(finish, name, lambda *_: None)
    run.Carbon = lambda country, enabled, previous: Carbon(country, enabled=False, previous=previous)
    if fault is not None:
        fault(rank)
    cli.main()


def at_step(number, action):
    """Call `action` when this process has begun step `number`."""
    from finetune.heartbeat import Heartbeat

    step = Heartbeat.step

    def wrapped(self, now):
        step(self, now)
        if now == number:
            action()

    Heartbeat.step = wrapped


def before(owner, name, action):
    """Call `action` with the arguments of the function `name` of `owner`, and then the function."""
    function = getattr(owner, name)

    def wrapped(*arguments, **keywords):
        action(*arguments, **keywords)
        return function(*arguments, **keywords)

    setattr(owner, name, wrapped)
