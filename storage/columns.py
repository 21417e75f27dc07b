"""Column types that mean the same on SQLite and on PostgreSQL."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Double, Integer
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

Identity = BigInteger().with_variant(Integer, "sqlite")
"""A row's number. SQLite numbers rows by itself only for a column declared INTEGER."""

Json = JSON().with_variant(JSONB(), "postgresql")
"""Any JSON value; its keys come back in any order."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite keeps no zone, so it is taken off and put back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, refusing a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be stored: {value}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Measurements(TypeDecorator[Mapping[str, float]]):
    """Named numbers as a JSON object. JSON has no NaN or infinity: those are kept as strings."""

    impl = JSON().with_variant(JSONB(), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, float] | None, dialect: Dialect) -> Any:
        """To plain JSON numbers, and strings for numbers that are not finite."""
        if value is None:
            return {}
        numbers = {name: float(number) for name, number in value.items()}
        return {name: n if math.isfinite(n) else str(n) for name, n in numbers.items()}

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, float]:
        """Back to floats."""
        return {name: float(number) for name, number in (value or {}).items()}


class AnyFloat(TypeDecorator[float]):
    """A float64 that may be NaN. SQLite stores NaN as NULL, so NULL reads as NaN."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """NaN becomes NULL on both databases."""
        return None if value is None or math.isnan(value) else float(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        """NULL becomes NaN."""
        return math.nan if value is None else value
