"""Measuring: real CodeCarbon in its own process, and everything that can go wrong with it."""

from __future__ import annotations

import csv
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import finetune.carbon
from finetune.carbon import Carbon, combine, known_country, suggest_countries, write_csv
from finetune.carbon.emissions import COLUMNS, from_measurement
from finetune.record import Emissions

FRANCE_KG_PER_KWH = 0.056039  # codecarbon 3.3.2, data/private_infra/global_energy_mix.json


def measuring(country: str | None = "FRA", previous: Emissions | None = None) -> Carbon:
    """With time enough for CodeCarbon to start on a machine that has much else to do."""
    return Carbon(country, enabled=True, previous=previous, deadline_seconds=100.0)


def measuring_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("meter.py" in part for part in child.cmdline())]


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def script(folder: Path, name: str, body: str) -> None:
    """A program on PATH that behaves as `body` (sh) says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def fake_codecarbon(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A `codecarbon` that the measuring process imports instead of the real one."""
    (folder / "codecarbon").mkdir()
    (folder / "codecarbon" / "__init__.py").write_text(textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    gc.collect()
    assert measuring_processes() == []


def test_phases_are_booked_and_add_up(tmp_path: Path) -> None:
    carbon = measuring()
    seconds = {"train": 0.0, "evaluate": 0.0}

    def spend(name: str, span: float) -> None:
        started = time.monotonic()  # sleeping takes longer on a busy machine
        time.sleep(span)
        seconds[name] += time.monotonic() - started

    with carbon.phase("train"):
        spend("train", 1.0)
        with carbon.phase("evaluate"):
            spend("evaluate", 0.5)
        spend("train", 0.5)
        halfway = carbon.snapshot()
    time.sleep(1.5)  # between phases: not ours
    with carbon.phase("evaluate"):
        spend("evaluate", 0.3)
    total = carbon.close(deadline_seconds=60.0)

    train, evaluate = total.phases["train"], total.phases["evaluate"]
    assert train["seconds"] == pytest.approx(seconds["train"], abs=0.45)
    assert evaluate["seconds"] == pytest.approx(seconds["evaluate"], abs=0.45)
    assert total.seconds == pytest.approx(train["seconds"] + evaluate["seconds"])
    assert total.kwh == pytest.approx(train["kwh"] + evaluate["kwh"], rel=0.01)
    assert total.kg == pytest.approx(train["kg"] + evaluate["kg"], rel=0.01)
    assert 0 < evaluate["kwh"] < train["kwh"]
    assert total.kwh * 3.6e6 / total.seconds > 1  # watts of a whole machine
    assert total.kg == pytest.approx(total.kwh * FRANCE_KG_PER_KWH, rel=1e-3)
    assert total.reason is None
    assert total.lower_bound is False
    assert total.country == "FRA"
    assert total.method.startswith("CodeCarbon ")
    for part in ("tracking mode machine", "CPU: ", "RAM: ", "grid 56.0 g/kWh (FRA)", "PUE 1"):
        assert part in total.method
    assert 0 < halfway.phases["train"]["kwh"] <= train["kwh"]
    assert carbon.close() == total

    write_csv(tmp_path / "emissions.csv", total, carbon.facts)
    text = (tmp_path / "emissions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["task_name"] for row in rows] == ["train", "evaluate"]
    assert float(rows[0]["emissions"]) == pytest.approx(train["kg"])
    assert float(rows[0]["energy_consumed"]) == pytest.approx(train["kwh"])
    parts = sum(float(rows[0][f"{part}_energy"]) for part in ("cpu", "gpu", "ram"))
    assert parts == pytest.approx(train["kwh"], rel=1e-6)
    assert float(rows[0]["ram_power"]) * float(rows[0]["duration"]) / 3.6e6 == pytest.approx(train["ram_kwh"])
    assert rows[0]["country_iso_code"] == "FRA"
    assert rows[0]["codecarbon_version"]
    assert not {"longitude", "latitude", "region", "cloud_provider", "cloud_region", "run_id"} & rows[0].keys()
    for private in (str(Path.home()), os.uname().nodename, str(tmp_path)):
        assert private not in text


def test_csv_columns_are_codecarbons_own() -> None:
    code = "from codecarbon.output_methods.emissions_data import TaskEmissionsData as T; print(*T.__annotations__)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(COLUMNS) - set(theirs) == {"pue"}


def test_without_a_country_energy_stays_and_kg_is_unknown(tmp_path: Path) -> None:
    carbon = measuring(None)
    with carbon.phase("train"):
        time.sleep(0.3)
    total = carbon.close()
    assert total.kwh is not None
    assert total.kwh > 0
    assert total.kg is None
    assert total.phases["train"]["kg"] is None
    assert total.country is None
    assert "no country" in total.method
    write_csv(tmp_path / "emissions.csv", total, carbon.facts)
    row = next(csv.DictReader((tmp_path / "emissions.csv").read_text().splitlines()))
    assert (row["emissions"], row["emissions_rate"], row["country_iso_code"]) == ("", "", "")


def test_construction_returns_at_once_and_snapshot_is_cheap() -> None:
    started = time.perf_counter()
    carbon = measuring()
    construction = time.perf_counter() - started
    with carbon.phase("train"):
        time.sleep(0.2)
        started = time.perf_counter()
        carbon.snapshot()
        snapshot = time.perf_counter() - started
        os.kill(measuring_processes()[0].pid, signal.SIGSTOP)  # as on a machine without a free core
        started = time.perf_counter()
        carbon.snapshot()
        stopped = time.perf_counter() - started
    started = time.perf_counter()
    total = carbon.close(deadline_seconds=0.5)
    closing = time.perf_counter() - started
    assert construction < 1
    assert snapshot < 0.5
    assert stopped < 0.5
    assert closing < 5
    assert total.kwh is not None
    assert total.kwh > 0
    assert total.lower_bound is True
    assert "did not answer" in total.reason


@pytest.mark.parametrize("tool", ["lscpu", "nvidia-smi"])
def test_a_tool_that_hangs_costs_the_deadline_and_no_more(tmp_path, monkeypatch, tool) -> None:
    endless = ["sleep", str(10**6 + os.getpid())]
    script(tmp_path / "bin", tool, f"exec {' '.join(endless)}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    carbon = Carbon("FRA", enabled=True, deadline_seconds=2.0)
    started = time.perf_counter()
    with carbon.phase("train"):
        waited = time.perf_counter() - started
    with carbon.phase("evaluate"):
        pass
    total = carbon.close()
    assert waited < 6
    assert time.perf_counter() - started < 10
    assert (total.kg, total.kwh, total.phases) == (None, None, {})
    assert total.reason == "CodeCarbon did not start within 2 s"
    hung = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == endless]
    assert psutil.wait_procs(hung, timeout=5)[1] == []  # the tool is ended too


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ImportError('no libfoo')", "CodeCarbon failed: ImportError: no libfoo"),
        ("import os; os._exit(9)", "the measuring process ended early"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the measuring process ended early"),
    ],
)
def test_a_codecarbon_that_crashes_gives_a_reason(tmp_path, monkeypatch, body, reason) -> None:
    fake_codecarbon(tmp_path, monkeypatch, body)
    carbon = measuring()
    with carbon.phase("train"):
        pass
    assert carbon.snapshot().reason == reason
    total = carbon.close()
    assert (total.kg, total.kwh, total.reason) == (None, None, reason)


def test_an_exception_that_codecarbon_swallows_is_the_reason(tmp_path, monkeypatch) -> None:
    script(tmp_path / "bin", "lscpu", "exit 1")
    (tmp_path / "sitecustomize.py").write_text(
        "import psutil\ndef broken(*a, **k): raise RuntimeError('no meminfo')\npsutil.virtual_memory = broken\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    carbon = measuring()
    with carbon.phase("train"):
        pass
    assert carbon.close().reason == "CodeCarbon failed: RuntimeError: no meminfo"


def test_a_process_that_cannot_start_gives_a_reason(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    carbon = measuring()
    with carbon.phase("train"):
        pass
    total = carbon.close()
    assert total.kwh is None
    assert total.reason == "the measuring process did not start (FileNotFoundError)"


def test_killed_while_measuring_keeps_the_last_snapshot_as_a_lower_bound() -> None:
    carbon = measuring()
    with carbon.phase("train"):
        time.sleep(0.3)
        known = carbon.snapshot()
        measuring_processes()[0].kill()
        time.sleep(0.2)
    total = carbon.close()
    assert known.kwh > 0
    assert total.kwh == known.kwh
    assert total.lower_bound is True
    assert total.reason == "the measuring process ended early"


def test_the_environment_and_config_files_change_nothing_and_reach_no_network(tmp_path, monkeypatch) -> None:
    log = tmp_path / "connects"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*a, **k):\n"
        f"    open({str(log)!r}, 'a').write(repr(a) + '\\n')\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    config = "force_carbon_intensity_g_co2e_kwh=1000000\nforce_ram_power=100000\n"
    (home / ".codecarbon.config").write_text(f"[codecarbon]\n{config}")
    (tmp_path / ".codecarbon.config").write_text(f"[codecarbon]\n{config}")
    variables = {
        "SAVE_TO_API": "true",
        "OUTPUT_METHODS": "csv,api,prometheus",
        "EMISSIONS_ENDPOINT": "http://127.0.0.1:9",
        "FORCE_CARBON_INTENSITY_G_CO2E_KWH": "1000000",
        "CO2_SIGNAL_API_TOKEN": "token",
        "ELECTRICITYMAPS_API_TOKEN": "token",
        "COUNTRY_ISO_CODE": "POL",
        "CLOUD_PROVIDER": "gcp",
        "CLOUD_REGION": "us-east1",
        "PUE": "50",
        "FORCE_CPU_POWER": "100000",
        "TRACKING_MODE": "process",
        "ALLOW_MULTIPLE_RUNS": "false",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"CODECARBON_{name}", value)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    carbon = measuring()
    with carbon.phase("train"):
        time.sleep(0.3)
    total = carbon.close()
    assert total.kg == pytest.approx(total.kwh * FRANCE_KG_PER_KWH, rel=1e-3)
    assert total.kwh * 3.6e6 / total.seconds < 5000
    assert (carbon.facts["tracking_mode"], carbon.facts["pue"]) == ("machine", 1.0)
    assert not log.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".codecarbon.config", "home", "sitecustomize.py"]


def test_a_meter_whose_answer_nobody_reads_removes_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "meter"
    folder.mkdir()
    meter = Path(finetune.carbon.__file__).with_name("meter.py")
    process = subprocess.Popen(
        [sys.executable, "-P", str(meter), "FRA"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    time.sleep(5)  # it has found out
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert not folder.exists()


def test_measuring_ends_with_a_run_that_is_killed() -> None:
    code = (
        "import os, time\nfrom finetune.carbon import Carbon\n"
        "carbon = Carbon('FRA', enabled=True)\n"
        "with carbon.phase('train'):\n    print(carbon._meter._process.pid, carbon._meter._folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    pid, folder = run.stdout.split()
    deadline = time.monotonic() + 30
    while running(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(int(pid))
    assert not Path(folder).exists()


def test_measuring_ends_with_a_run_that_forgets_to_close() -> None:
    code = "from finetune.carbon import Carbon\ncarbon = Carbon('FRA', enabled=True)\nprint(carbon._meter._process.pid)"
    started = time.perf_counter()
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 60
    assert run.stderr == ""
    assert not running(int(run.stdout))


def test_other_processes_of_a_node_measure_nothing() -> None:
    carbon = Carbon("FRA", enabled=False)
    with carbon.phase("train"):
        assert measuring_processes() == []
    assert carbon.close() == Emissions(country="FRA", reason="not measured by this process")
    earlier = Emissions(kg=1.0, kwh=2.0, seconds=3.0)
    assert Carbon("FRA", enabled=False, previous=earlier).close() == earlier


def test_no_phase_gives_null_not_zero() -> None:
    carbon = measuring()
    total = carbon.close()
    assert (total.kg, total.kwh) == (None, None)
    assert total.reason == "no phase was long enough to measure"


def part(kwh: float, seconds: float, name: str = "train", **fields) -> Emissions:
    amounts = {"kg": kwh / 2, "kwh": kwh, "seconds": seconds, "cpu_kwh": kwh, "gpu_kwh": 0.0, "ram_kwh": 0.0}
    values = {"kg": kwh / 2, "kwh": kwh, "seconds": seconds, "country": "FRA", "method": "m", "phases": {name: amounts}}
    return Emissions(**(values | fields))


def test_resumed_run_adds_up_and_stays_a_lower_bound() -> None:
    before = part(4.0, 100.0, lower_bound=True)
    carbon = measuring(previous=before)
    with carbon.phase("train"):
        time.sleep(0.3)
    total = carbon.close()
    assert total.kwh > 4.0
    assert total.kwh == pytest.approx(4.0, abs=0.01)
    assert total.kg == pytest.approx(2.0, abs=0.01)
    assert total.seconds == pytest.approx(100.3, abs=5)
    assert total.phases["train"]["kwh"] == pytest.approx(total.kwh)
    assert total.lower_bound is True


def test_resumed_run_that_cannot_measure_keeps_what_was_known(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    total = Carbon("FRA", enabled=True, previous=part(4.0, 100.0)).close()
    assert (total.kwh, total.kg, total.seconds, total.lower_bound) == (4.0, 2.0, 100.0, True)
    assert "did not start" in total.reason


def test_nodes_are_summed_and_a_missing_one_makes_a_lower_bound() -> None:
    two = combine([part(4.0, 100.0), None, part(6.0, 90.0), None])
    assert (two.kwh, two.kg, two.seconds) == (10.0, 5.0, 100.0)
    assert two.phases["train"]["kwh"] == 10.0
    assert two.phases["train"]["seconds"] == 100.0
    assert two.method == "2 nodes; m"
    assert two.lower_bound is False
    missing = combine([part(4.0, 100.0), Emissions(reason="CodeCarbon did not start within 10 s")])
    assert (missing.kwh, missing.lower_bound) == (4.0, True)
    assert missing.reason == "CodeCarbon did not start within 10 s"
    assert combine([part(4.0, 100.0)]) == part(4.0, 100.0)
    assert combine([None]).reason == "no process measured"
    assert combine([None]).kwh is None


def test_phases_of_different_processes_are_united() -> None:
    both = combine([part(4.0, 100.0), part(1.0, 10.0, "evaluate")])
    assert both.phases["train"]["kwh"] == 4.0
    assert both.phases["evaluate"]["seconds"] == 10.0


def test_countries() -> None:
    assert known_country("FRA")
    for unknown in ("", "XXX", "fra", "FR", "CAF", "../etc"):  # CAF: a factor of 0 in CodeCarbon's table
        assert not known_country(unknown)
    assert suggest_countries("fra") == ["FRA"]
    assert suggest_countries("FR") == ["FRA", "FRO"]
    assert suggest_countries("germany") == ["DEU"]
    assert suggest_countries("CAF") == []
    assert suggest_countries("XXX") == []


def test_checking_a_country_does_not_import_codecarbon() -> None:
    lines = (
        "import sys",
        "from finetune.carbon import known_country",
        "known_country('FRA')",
        "print('codecarbon' in sys.modules)",
    )
    code = "\n".join(lines)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_phase_too_short_to_measure_is_left_out_not_zero() -> None:
    nothing = dict.fromkeys(("kg", "kwh", "seconds", "cpu_kwh", "gpu_kwh", "ram_kwh"), 0.0)
    facts = {"codecarbon_version": "3", "tracking_mode": "machine", "sensors": "none", "pue": 1.0}
    booked = {"train": nothing | {"kg": 1.0, "kwh": 2.0}, "evaluate": nothing}
    total = from_measurement(booked, facts, "FRA", None)
    assert list(total.phases) == ["train"]
    assert total.kwh == 2.0
    only = from_measurement({"evaluate": nothing}, facts, "FRA", None)
    assert (only.kwh, only.kg, only.reason) == (None, None, "no phase was long enough to measure")
