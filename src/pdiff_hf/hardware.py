"""What a machine is, so that times can be judged."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch


def describe_hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and the accelerator, if there is one."""
    cpu = platform.processor()
    # On Linux, platform knows the architecture only.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "cpu": cpu or platform.machine(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": None if accelerator is None else _name(accelerator),
    }


def _name(accelerator: torch.device) -> str:
    name = torch.cuda.get_device_name() if accelerator.type == "cuda" else accelerator.type
    return f"{torch.accelerator.device_count()} × {name}"
