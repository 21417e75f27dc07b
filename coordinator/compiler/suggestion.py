"""A name that an author may have meant."""

import difflib
import re
from collections.abc import Iterable


def suggested(name: object, known: Iterable[str]) -> str:
    """`, did you mean "cross_entropy"?` for `CrossEntropyLoss` or `cross_entopy`; else nothing."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower()
    near = difflib.get_close_matches(words.removesuffix("_loss"), list(known), 1)
    return f', did you mean "{near[0]}"?' if near else ""
