"""Sixteen seeds trained as one stack, against the same sixteen in a row.

    python benchmarks/stacked_training.py [--device cuda] [--repeats 5]

The alternative is the loop anyone would write: an nn.Module, an optimiser, a for. Both draw the same parameters,
batches and noise, so their results can be compared, and are: first in float64, then timed in float32. The last
line is the ratio of the medians.
"""

import argparse
import statistics
import time

import torch

from lossbook import lab
from lossbook.lab.fitting import NOISE_STEPS
from lossbook.methods.contrastive import info_nce

SEEDS, EPOCHS, BATCH = 16, 15, 128


def build(run) -> torch.nn.Module:
    return lab.EncoderProjector(lab.mlp([64, 128, 64]), lab.mlp([64, 32]))


def noise(generator, steps):
    return {"noise": torch.randn(steps, 2, BATCH, 1, 8, 8, generator=generator, device=generator.device)}


def loss(model, batch, run):
    first, second = (model(batch["inputs"] + 0.1 * noise)[1] for noise in batch["noise"])
    return info_nce(first, second)


def stacked(inputs, device, dtype, seeds):
    runs = lab.grid(seed=seeds, learning_rate=[1e-3])
    fitted = lab.fit(
        build,
        loss,
        {"inputs": inputs},
        runs,
        epochs=EPOCHS,
        batch_size=BATCH,
        noise=noise,
        device=device,
        dtype=dtype,
        progress=None,
    )
    return torch.tensor(fitted.history["loss"].to_numpy()).view(len(seeds), -1)


def in_a_row(inputs, device, dtype, seeds):
    inputs, histories = inputs.to(device, dtype), []
    for seed in seeds:
        torch.manual_seed(seed)
        model = build({}).to(device, dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        order, draw = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)
        history = []
        for _ in range(EPOCHS):
            rows = torch.randperm(len(inputs), generator=order).to(device)
            for start in range(0, len(inputs) - BATCH + 1, BATCH):
                if len(history) % NOISE_STEPS == 0:
                    block = noise(draw, NOISE_STEPS)["noise"].to(dtype)
                batch = {
                    "inputs": inputs[rows[start : start + BATCH]],
                    "noise": block[len(history) % NOISE_STEPS],
                }
                value = loss(model, batch, {})
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                history.append(value.detach())
        histories.append(torch.stack(history).cpu())
    return torch.stack(histories)


def timed(train, *arguments) -> float:
    started = time.perf_counter()
    train(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device, seeds = lab.choose_device(options.device), list(range(SEEDS))
    inputs = lab.load("digits").inputs

    gap = (stacked(inputs, device, torch.float64, seeds) - in_a_row(inputs, device, torch.float64, seeds)).abs()
    print(f"largest difference of any loss at any step, float64: {gap.max():.1e}")
    times = {"stacked": [], "in a row": []}
    for _ in range(options.repeats):  # alternating, so that both see the same disturbances
        times["stacked"].append(timed(stacked, inputs, device, torch.float32, seeds))
        times["in a row"].append(timed(in_a_row, inputs, device, torch.float32, seeds))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread"
    for label, values in times.items():
        print(f"{label}: median {statistics.median(values):.2f} s, range {min(values):.2f} to {max(values):.2f} s")
    ratio = statistics.median(times["in a row"]) / statistics.median(times["stacked"])
    print(f"{SEEDS} seeds on {name}: stacked is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
