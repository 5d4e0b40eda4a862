"""What the run runs on: devices, threads, versions, memory; and what a step takes here."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from finetune.errors import RecipeError

__all__ = [
    "be_deterministic",
    "describe",
    "has_bf16",
    "keep_heap",
    "peak_memory_bytes",
    "race",
    "refuse_impossible_precision",
    "reset_peak_memory",
    "seconds_since_start",
    "surroundings",
    "threads_for",
    "versions",
]

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "safetensors",
    "huggingface_hub",
    "codecarbon",
    "wandb",
    "numpy",
    "scikit-learn",
)
PROBE_SECONDS = 1.0


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide the numbers."""
    found = {"python": platform.python_version(), "headswap": _version("headswap")}
    return found | {name: _version(name) for name in PACKAGES}


def surroundings() -> dict[str, str]:
    """All outside a run that its bits depend on: versions, the kind of processor and of GPU."""
    kinds = {"processor": f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"}
    if torch.cuda.is_available():
        kinds["gpu"] = torch.cuda.get_device_name()
    return versions() | kinds


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, Any]:
    """The kind of machine; no name of it, no address."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def threads_for(local_processes: int) -> int:
    """The threads of one process when the cores it may use are shared by the processes of the node; at least one.

    OMP_NUM_THREADS wins where it is set: on a machine shared with others fewer threads are faster.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable) // max(1, local_processes))


def keep_heap() -> bool:
    """Keep freed memory in this process for the next tensors; whether the C library can (glibc).

    Else each training step on a CPU gives its large tensors back to the kernel and gets them again as pages to be
    zeroed, one fault each. Source: mallopt(3).
    """
    trim_threshold, top_pad, mmap_max = (-1, -1), (-2, 64 << 20), (-4, 0)  # M_… of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(*setting) == 1 for setting in (trim_threshold, top_pad, mmap_max))


def be_deterministic() -> None:
    """Make torch use deterministic algorithms, and raise where there is none.

    Source: torch's notes on reproducibility; the cuBLAS variable must be set before the first use of cuBLAS.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seconds_since_start(moment: float) -> float:
    """From the start of this process to `moment` (seconds since the epoch)."""
    return float(moment - psutil.Process().create_time())


def peak_memory_bytes() -> int:
    """The most memory held so far: of the GPU's allocator where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Make `peak_memory_bytes` count from here, where the system can: on Linux, and on a GPU (proc(5), clear_refs)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def refuse_impossible_precision(precision: str) -> None:
    """Raises RecipeError for fp16 on a CPU, where Accelerate would train in fp32 without a word."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError("train.precision: fp16 needs a GPU; on a CPU use auto, bf16 or fp32")


def has_bf16() -> bool:
    """Whether the GPU or the CPU has instructions for products in bf16; True where that is not known.

    An x86 CPU without them computes a step in bf16 several times as slowly as in fp32.
    """
    if torch.cuda.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def race(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds that each of some ways to make the same step takes here, best of the rounds.

    Takes about a second after one warm-up of each; they alternate, so that a busy machine slows all alike.
    """
    for step in steps.values():
        step()
    best = dict.fromkeys(steps, float("inf"))
    end = time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - started)
    return best
