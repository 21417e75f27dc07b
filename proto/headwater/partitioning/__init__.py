"""Splitting one data set into parts, for trials of federated training on one machine."""

from headwater.partitioning.decisions import (
    dirichlet_parts,
    held_out,
    iid_parts,
    label_counts,
    shard_parts,
    value_parts,
)

__all__ = [
    "dirichlet_parts",
    "held_out",
    "iid_parts",
    "label_counts",
    "shard_parts",
    "value_parts",
]
