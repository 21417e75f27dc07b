"""Updates on disk for the tests of aggregation, and hypothesis's ways to draw them."""

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from coordinator.aggregation.order import Contribution
from headwater.encodings.names import EXACT
from headwater.layout import Layout, Role, TensorSpec
from headwater.updates import StoredUpdate, blocks_of, frame

SMALL = Layout(
    (
        TensorSpec("layer.weight", (6,), "float32", Role.TRAINABLE),
        TensorSpec("norm.running_var", (2,), "float32", Role.AVERAGED_BUFFER, positive=True),
        TensorSpec("norm.num_batches_tracked", (), "int64", Role.AVERAGED_BUFFER),
    )
)


def stored(folder: Path, layout: Layout, change: np.ndarray, counter: int, examples: int):
    """An update on disk whose change is exactly these float32 values."""
    parts = []
    for block in blocks_of(layout):
        values = np.array([counter], "<i8") if block.section == "integers" else change[block.place]
        parts.append(frame(values.tobytes()))
    content = b"".join(parts)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / digest
    path.write_bytes(content)
    return Contribution(digest, examples, StoredUpdate(path, layout, EXACT))


def float32s() -> st.SearchStrategy[np.float32]:
    """Finite values over the whole exponent range of float32, subnormal ones too."""
    sign, last = st.sampled_from([-1.0, 1.0]), 2.0**-23
    normal = st.builds(
        lambda s, e, m: np.float32(s * m * last * 2.0**e),
        sign, st.integers(-126, 127), st.integers(2**23, 2**24 - 1),
    )  # fmt: skip
    subnormal = st.builds(
        lambda s, m: np.float32(s * m * 2.0**-149), sign, st.integers(0, 2**23 - 1)
    )
    return normal | subnormal


changes = st.lists(float32s(), min_size=8, max_size=8).map(lambda v: np.array(v, np.float32))
free = st.lists(st.tuples(changes, st.integers(1, 10**6)), min_size=3, max_size=6)
cancelling = st.builds(
    lambda large, small, n, m: [(large, n), (-large, n), (small, m)],
    changes, changes, st.integers(1, 1000), st.integers(1, 1000),
)  # fmt: skip
updates = free | cancelling
