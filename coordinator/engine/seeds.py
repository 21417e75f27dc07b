"""Every seed of a job, derived from the job's seed and from nothing that changes between runs."""

import hashlib


def derived_seed(seed: int, *parts: int | str) -> int:
    """A seed in 0 <= s < 2**63 for a purpose named by `parts`: same parts, same seed."""
    text = ":".join(str(part) for part in ("headwater", seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
