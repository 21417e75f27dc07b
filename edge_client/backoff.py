"""How long to wait before trying again."""

from collections.abc import Callable


class Backoff:
    """Exponential backoff with jitter: each wait is drawn from the upper half of a doubling span.

    After Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter"),
    which keeps thousands of devices from returning at one instant after a coordinator's restart.
    `random` returns values from 0 to 1.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        first_seconds: float = 0.25,
        longest_seconds: float = 30.0,
    ) -> None:
        self._random = random
        self._first = first_seconds
        self._longest = longest_seconds
        self._span = first_seconds

    def next_seconds(self) -> float:
        """The next wait; spans double up to the longest."""
        span = self._span
        self._span = min(2 * span, self._longest)
        return span * (0.5 + 0.5 * self._random())

    def reset(self) -> None:
        """Start again from the first span, because something worked."""
        self._span = self._first
