"""Knows what becomes of fields that a schema does not have: which ask for nothing, which are refused, which ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from paceline.core.errors import InvalidRequestError

EMPTY: tuple[object, ...] = (None, "", [], {})
"""Values that ask for nothing, whatever the field."""
NOTHING = {"enum": list(EMPTY)}
"""The same as JSON schema."""
Neutral = Mapping[str, tuple[object, ...]]
"""Fields that are known and not supported -> their values, beside the empty ones, that ask for nothing."""


@dataclass(slots=True)
class Reading:
    """How the fields of one body are read, and what was found: the context of its validation."""

    unknown: str = "refuse"
    """Or "warn" or "ignore"."""
    ignored: list[str] = field(default_factory=list)
    """Names of unknown fields that ask for something, each with the field that it lies in."""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What an object may hold beside the fields of its schema."""

    ignored: frozenset[str] = frozenset()
    """They change nothing in an answer."""
    neutral: Neutral = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    """What a refusal of a ``neutral`` field says, where that is more than "is not supported"."""
    within: str = ""
    """The field of the body that holds the object."""

    def read(self, data: dict[Any, Any], known: Mapping[str, object], reading: Reading | None) -> dict[Any, Any]:
        """The fields that the schema is to see. A null is no field: the default of every field is what it means.

        Raises:
            InvalidRequestError: a known field that is not supported and asks for something.
        """
        reading = Reading() if reading is None else reading
        kept = {}
        for name, value in data.items():
            if value is None:
                continue
            if name in known:
                kept[name] = value
            elif name in self.ignored or self._asks_for_nothing(str(name), value):
                continue
            elif reading.unknown == "refuse":
                kept[name] = value  # the schema says no
            else:
                reading.ignored.append(self._path(name))
        return kept

    def _asks_for_nothing(self, name: str, value: object) -> bool:
        values = (*EMPTY, *self.neutral.get(name, ()))
        if any(_same(value, one) for one in values):
            return True
        if name in self.neutral:
            self.refuse(name, self.reasons.get(name, "is not supported"))
        return False

    def refuse(self, name: str, why: str) -> NoReturn:
        raise InvalidRequestError(f"{self._path(name)} {why}", param=self.within or name)

    def _path(self, name: str) -> str:
        return f"{self.within}.{name}" if self.within else name

    def describe(self, schema: dict[str, Any]) -> None:
        """Adds to an object's JSON schema what ``read`` takes beside it."""
        properties = schema.setdefault("properties", {})
        for name in sorted(self.ignored):
            properties[name] = {"description": "Accepted and ignored."}
        for name, values in sorted(self.neutral.items()):
            about = "Not supported; these values ask for nothing."
            properties.setdefault(name, {"enum": [*EMPTY, *values], "description": about})
        schema["additionalProperties"] = dict(NOTHING)


def _same(value: object, other: object) -> bool:
    """Equal as JSON has it: 1 is 1.0, but not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
