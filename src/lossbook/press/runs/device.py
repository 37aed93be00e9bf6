"""The device that a run uses, found without importing PyTorch."""

import functools
import platform
import shutil
import subprocess
from pathlib import Path

from lossbook.press.runs.parameters import Settings


@functools.cache
def device_of_machine() -> dict[str, str]:
    """The device that "auto" means here: kind ("cuda" or "cpu") and name."""
    if program := shutil.which("nvidia-smi"):
        command = [program, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return {"kind": "cuda", "name": done.stdout.splitlines()[0].strip()}
    return cpu()


def cpu() -> dict[str, str]:
    """The processor as a device."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {"kind": "cpu", "name": name}


def device_of(settings: Settings) -> dict[str, str]:
    """The device that a run's parameters choose."""
    wanted = str(settings.values.get("device", "cpu"))
    if wanted == "auto":
        return device_of_machine()
    machine = device_of_machine()
    return machine if wanted.startswith(machine["kind"]) else {**cpu(), "kind": wanted.split(":")[0]}
