"""The launch files say where a run happens, and nothing that a recipe decides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))

PLACE = {  # where and on how many devices
    "compute_environment",
    "debug",
    "distributed_type",
    "enable_cpu_affinity",
    "fsdp_config",
    "gpu_ids",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "num_machines",
    "num_processes",
    "rdzv_backend",
    "same_network",
    "use_cpu",
}
OWNED = re.compile(
    r"precision|fp8|fp16|bf16|accumulation|clip|grad_norm|batch|learning_rate|optimizer|scheduler|seed|"
    r"activation_checkpointing|dynamo|compile|sync_module_states|lora",
)


def violations(config: dict[str, Any], above: str = "") -> list[str]:
    """Dotted keys of a launch file that belong to a recipe, or that nobody allowed."""
    found = []
    for key, value in config.items():
        dotted = f"{above}{key}"
        if OWNED.search(key) or (not above and key not in PLACE):
            found.append(dotted)
        elif isinstance(value, dict):
            found += violations(value, f"{dotted}.")
    return found


def read(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path)


def test_the_three_launch_files_exist():
    assert {"cpu", "ddp", "gpu"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_sets_nothing_that_a_recipe_owns(path: Path):
    assert violations(read(path)) == []


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"mixed_precision": "bf16"}, ["mixed_precision"]),
        ({"mixed_precision": "no"}, ["mixed_precision"]),
        ({"downcast_bf16": "no"}, ["downcast_bf16"]),
        ({"deepspeed_config": {"gradient_accumulation_steps": 1}}, ["deepspeed_config"]),
        ({"fsdp_config": {"fsdp_activation_checkpointing": True}}, ["fsdp_config.fsdp_activation_checkpointing"]),
        ({"fsdp_config": {"nested": {"gradient_clipping": 1.0}}}, ["fsdp_config.nested.gradient_clipping"]),
        ({"gradient_clipping": 1.0, "train_batch_size": 8}, ["gradient_clipping", "train_batch_size"]),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, ["dynamo_config"]),
        ({"fsdp_config": {"fsdp_version": 2}}, []),
    ],
)
def test_planted_violations_are_found(planted: dict[str, Any], found: list[str]):
    assert violations(read(CONFIGS[0]) | planted) == found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_with_the_loader_of_accelerate(path: Path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision is None  # the launcher then passes "no", and the recipe decides
    assert config.num_processes == {"cpu": 2, "gpu": 1, "ddp": 2}.get(path.stem, config.num_processes)
    assert config.use_cpu is (path.stem == "cpu")


def test_unknown_key_is_refused_by_accelerate(tmp_path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "typo.yaml"
    path.write_text(CONFIGS[0].read_text(encoding="utf-8") + "num_procceses: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_procceses"):
        load_config_from_file(str(path))


WORLD = """
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([float(accelerator.process_index + 1)]), "sum")
if accelerator.is_main_process:
    backend = torch.distributed.get_backend()
    print("world", accelerator.num_processes, backend, total.item(), accelerator.mixed_precision)
torch.distributed.destroy_process_group()
"""


def test_cpu_config_starts_two_processes_that_reduce_together(tmp_path: Path):
    script = tmp_path / "world.py"
    script.write_text(WORLD, encoding="utf-8")
    config = next(path for path in CONFIGS if path.stem == "cpu")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    done = subprocess.run(
        launch, capture_output=True, text=True, timeout=120, env=environment | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "world 2 gloo 3.0 no"
