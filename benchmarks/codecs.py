"""What each update encoding costs and saves, on an update of a really trained network.

A small convolutional network is trained for an epoch on scikit-learn's digits with torch, and the
change of its weights is encoded and decoded, one block at a time on one thread. Speeds are of
float32 bytes in or out a second, beside a copy of as many bytes; sizes are of the float32's.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, median
from headwater.encodings.names import encoding_named
from headwater.layout import BLOCK_ELEMENTS

NAMES = ("fp32", "bf16", "int8", "int4", "topk:0.01", "topk:0.01:int8")
COLUMNS = {
    "encoding": "encoding",
    "share": "of float32",
    "error": "left out",
    "encode": "encode, MB/s",
    "decode": "decode, MB/s",
    "copy": "copy, MB/s",
}


@click.command(help=__doc__)
@click.option("--repeats", default=9, show_default=True, help="Of which the median counts.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each case.")
def main(repeats: int, as_json: bool) -> None:
    report = Report("codecs", COLUMNS, as_json=as_json)
    change = trained_change()
    blocks = [change[at : at + BLOCK_ELEMENTS] for at in range(0, change.size, BLOCK_ELEMENTS)]
    copied = median([seconds(lambda: [one.copy() for one in blocks]) for _ in range(repeats)])
    for name in (variant for one in NAMES for variant in (one, f"{one}+zstd")):
        report.add(measured(name, blocks, repeats) | {"copy": change.nbytes / copied / 1e6})


def measured(name: str, blocks: list[NDArray[np.float32]], repeats: int) -> dict[str, Any]:
    """One encoding: its share of the bytes, its relative error, and its speeds."""
    encoding, size = encoding_named(name), sum(block.nbytes for block in blocks)
    payloads = [encoding.encode(one, at) for at, one in enumerate(blocks)]
    pairs = [(memoryview(data), one.size) for data, one in zip(payloads, blocks, strict=True)]
    decoded = [encoding.decode(data, count) for data, count in pairs]
    encode = [
        seconds(lambda: [encoding.encode(one, at) for at, one in enumerate(blocks)])
        for _ in range(repeats)
    ]
    decode = [
        seconds(lambda: [encoding.decode(data, count) for data, count in pairs])
        for _ in range(repeats)
    ]
    left = sum(squares(a - b) for a, b in zip(blocks, decoded, strict=True))
    return {
        "encoding": name,
        "share": sum(map(len, payloads)) / size,
        "error": (left / sum(map(squares, blocks))) ** 0.5,
        "encode": size / median(encode) / 1e6,
        "decode": size / median(decode) / 1e6,
    }


def seconds(work: Callable[[], Any]) -> float:
    """How long it took."""
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def squares(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def trained_change() -> NDArray[np.float32]:
    """The change that a second epoch of SGD with momentum makes in 620,362 weights."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = nn.functional.interpolate(images, size=32).repeat(1, 3, 1, 1)
    targets = torch.tensor(labels)
    model = nn.Sequential(*_layers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        before = _flat(model)
        for rows in _batches(len(images)):
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(model(images[rows]), targets[rows])
            loss.backward()
            optimizer.step()
    return np.asarray(_flat(model) - before)


def _layers() -> Iterator[Any]:
    from torch import nn

    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        yield from (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    yield from (nn.Flatten(), nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, 10))


def _flat(model: Any) -> Any:
    import torch

    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


def _batches(count: int) -> Iterator[Any]:
    import torch

    order: Any = torch.randperm(count)[:896]
    return iter(order.split(32))


if __name__ == "__main__":
    main()
