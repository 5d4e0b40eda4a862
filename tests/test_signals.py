"""A first signal asks, a second ends at once; the death of a launcher counts as a signal."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from finetune.errors import Preempted
from finetune.signals import STOPPING, StopFlag, stop_requests, under_launcher


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_the_flag_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_a_thread_has_no_signals_to_handle():
    found = []

    def work():
        with stop_requests() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_at_once_a_signal_ends_the_block_wherever_it_is():
    ended = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            ended.append("went on")
        except Exception:  # as a library might
            ended.append("taken for an error of its own")
        finally:
            ended.append("cleaned up")

    message = r"stopped \(SIGUSR1\); the same command continues"
    with stop_requests() as stop, pytest.raises(Preempted, match=message), stop.at_once():
        work()
    assert ended == ["cleaned up"]


def test_at_once_knows_of_an_earlier_request_and_ends_with_its_block():
    with stop_requests() as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # only sets the flag
        with pytest.raises(Preempted), stop.at_once():
            raise AssertionError("it went on")


def test_a_launcher_that_ends_its_processes_does_not_disturb_what_is_saved(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    for launched in (True, False):
        stop = StopFlag(launched)
        stop.on_signal(signal.SIGTERM, None)
        stop.on_signal(signal.SIGTERM, None)  # passed on by the launcher, or given by hand
        monkeypatch.setattr("finetune.signals.ECHO_SECONDS", 0.0)
        stop.on_signal(signal.SIGINT, None)
        stop.obeyed = True
        stop.on_signal(signal.SIGTERM, None)
        monkeypatch.undo()
        monkeypatch.setattr(os, "_exit", ends.append)
    assert ends == [130, 143, 130, 143]


@pytest.mark.parametrize("asked", [True, False])
def test_a_launcher_that_dies_after_a_request_makes_no_second_one(asked, monkeypatch):
    """The main thread may be saving what the first request asked for, long after it."""
    sent = []
    monkeypatch.setattr(signal, "pthread_kill", lambda _, number: sent.append(number))
    stop = StopFlag(launched=True)
    if asked:
        stop.on_signal(signal.SIGTERM, None)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    stop.watch_parent(threading.Event())
    assert sent == ([] if asked else [signal.SIGTERM])


def program(body):
    return [sys.executable, "-c", textwrap.dedent(body)]


def test_a_second_signal_ends_the_process_at_once():
    process = subprocess.Popen(
        program("""
            import time
            from finetune.signals import stop_requests
            with stop_requests() as stop:
                print("ready", flush=True)
                while not stop:
                    time.sleep(0.01)
                print("asked", flush=True)
                time.sleep(60)
        """),
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(50) == 128 + signal.SIGTERM  # it would sleep for 60 s


@pytest.mark.parametrize("launched", [True, False])
def test_parent_death_counts_under_a_launcher_only(tmp_path, launched):
    child = tmp_path / "child.py"
    child.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from contextlib import suppress
        from finetune.errors import Preempted
        from finetune.signals import stop_requests
        with stop_requests() as stop:
            open({str(tmp_path / "ready")!r}, "w").close()
            with suppress(Preempted), stop.at_once():
                time.sleep({30 if launched else 3})
                stop.reason = "nothing happened"
            open({str(tmp_path / "reason")!r}, "w").write(stop.reason)
        """)
    )
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    if launched:
        environment["LOCAL_RANK"] = "0"
    body = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, {str(child)!r}])\ntime.sleep(60)"
    parent = subprocess.Popen(program(body), env=environment)
    wait_for(tmp_path / "ready")
    parent.kill()
    parent.wait()
    wait_for(tmp_path / "reason")
    assert (tmp_path / "reason").read_text() == ("the launcher died" if launched else "nothing happened")


def wait_for(path):
    end = time.monotonic() + 120
    while not (path.exists() and (path.name == "ready" or path.read_text())):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_counts_as_a_launcher():
    assert under_launcher({"LOCAL_RANK": "0"})
    assert under_launcher({"ACCELERATE_USE_CPU": "true"})
    assert not under_launcher({"HOME": "/root"})
