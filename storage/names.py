"""Finding rows by the names that people type, and names that are free."""

import re
from collections.abc import Container, Iterable
from difflib import get_close_matches

from headwater.errors import NotFoundError


def unknown(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    """The error for a name that does not exist, with those that resemble it, or some that do."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
    if not near:
        return NotFoundError(f"there is no {kind} {name!r}: there is none yet")
    return NotFoundError(f"there is no {kind} {name!r}; there is {', '.join(near)}")


def free_name(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, … that is not taken."""
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def slug(name: str) -> str:
    """A name in lower-case letters, digits, `.`, `_` and single hyphens; `job` if none is left."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "job"
