"""Measure what a reconstruction costs beside plain forward passes, and how its memory grows with the batches.

    python -m benchmarks.one_pass

A transformer of six blocks is pruned to 2:4 on a growing number of batches, each number in a process of its own. Times
are in seconds: of one plain pass over all batches, the best of three, and of the forwards, Gram matrices and solving of
`reconstruct`, which runs the model once on every batch. Memory is what the process had at its peak beyond what it had
before, in megabytes; a plain pass, which drops each batch's activations, is what it is compared with. On the CPU
nothing is offloaded. Takes a minute or two.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from transmask.torch import reconstruct

WIDTH, BLOCKS, HEADS, SEQUENCES, TOKENS = 128, 6, 4, 8, 256
BATCHES = (1, 4, 16, 64)


class Block(nn.Module):
    """Attention and a feed-forward network, each with its norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (sequences, tokens, WIDTH) to the same shape."""
        y = self.norms[0](x)
        q, k, v = (layer(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def peak_mb() -> float:
    """Return the peak of this process's memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def plain_pass(model: nn.Module, batches: list[torch.Tensor]) -> float:
    """Run the model on every batch; return the seconds."""
    start = time.perf_counter()
    for batch in batches:
        model(batch)
    return time.perf_counter() - start


def measure(count: int) -> dict[str, float]:
    """Reconstruct on so many batches; return times and memory."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(BLOCKS))).eval()
    batches = [torch.randn(SEQUENCES, TOKENS, WIDTH) for _ in range(count)]
    reconstruct(nn.Linear(WIDTH, WIDTH), [batches[0]], "2:4", progress=False)  # compiles the solver
    before = peak_mb()
    plain = min(plain_pass(model, batches) for _ in range(3))
    plain_mb = peak_mb() - before
    seconds = reconstruct(model, batches, "2:4", progress=False).seconds
    return {
        "batches": count,
        "plain pass": plain,
        "forwards": seconds.forward,
        "forwards / plain pass": seconds.forward / plain,
        "Gram matrices": seconds.gram,
        "solving": seconds.solving,
        "plain MB": plain_mb,
        "reconstruct MB": peak_mb() - before,
    }


def main() -> None:
    """Measure each number of batches in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    hidden = SEQUENCES * TOKENS * WIDTH * 4 / 2**20
    print(f"{BLOCKS} blocks of width {WIDTH}; one hidden state of a batch is {hidden:.1f} MB")
    for index, count in enumerate(arguments.batches):
        command = [sys.executable, "-m", "benchmarks.one_pass", "--measure", str(count)]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if index == 0:
            print("| " + " | ".join(row) + " |")
            print("|" + "---|" * len(row))
        print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
