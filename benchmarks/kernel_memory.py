"""Memory of ten warm kernels together against ten ordinary ones (shared pages counted once: PSS).

    python benchmarks/kernel_memory.py [--kernels 10]

Every kernel has imported torch, pandas and seaborn and drawn a figure. The warm process itself is counted.
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

import psutil

from lossbook.press.runs import forked
from lossbook.press.runs.kernels import Kernel

CODE = """
import matplotlib.pyplot as plt, pandas, seaborn, torch
figure, axes = plt.subplots(); axes.plot([1, 2]); plt.show()
"""


def proportional_size(process: psutil.Process) -> int:
    return process.memory_full_info().pss


async def measured(count: int, forked: bool) -> int:
    """Bytes that this many kernels add to what was there."""

    class Here(Kernel):
        folder = Path(tempfile.gettempdir())
        started: list = []  # noqa: RUF012
        warm = forked

    clients = []
    for _ in range(count):
        kernel = Here()
        await kernel.start_kernel()
        client = kernel.client()
        client.start_channels()
        await client.wait_for_ready(timeout=120)
        reply = await client.execute_interactive(CODE, timeout=120, output_hook=lambda message: None)
        assert reply["content"]["status"] == "ok", reply["content"]
        clients.append(client)
    mine = psutil.Process(os.getpid())
    total = sum(proportional_size(child) for child in mine.children(recursive=True))
    for client, kernel in zip(clients, Here.started, strict=True):
        client.stop_channels()
        kernel.stop()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=10)
    options = parser.parse_args()
    ordinary = asyncio.run(measured(options.kernels, False))
    forked.start()
    warm = asyncio.run(measured(options.kernels, True))
    print(f"{options.kernels} ordinary kernels: {ordinary / 2**20:.0f} MiB")
    print(f"{options.kernels} warm kernels and the process they fork from: {warm / 2**20:.0f} MiB")
    print(f"warm kernels take 1/{ordinary / warm:.1f} of the memory of ordinary ones")


if __name__ == "__main__":
    main()
