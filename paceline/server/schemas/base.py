"""Knows what all bodies share: strictness, fields that ask for nothing, numbers with their documented ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from paceline.core.errors import InvalidRequestError

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name} {why}", param=name)


class Strict(BaseModel):
    """No coercion (a bool is no int, a string no number; an int is a number), no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class Body(Strict):
    """A request body. Fields of OpenAI's that are not supported may have values that ask for nothing.

    ``ignored`` change nothing in an answer; ``neutral`` are accepted with these values and null, as some clients
    always send them.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"user"})
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    model: str | None = None
    """Must be the name of the served model, which is also the default."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: object) -> object:
        if not isinstance(data, dict):
            raise InvalidRequestError("the body must be a JSON object")
        return {key: value for key, value in data.items() if not cls._asks_for_nothing(key, value)}

    @classmethod
    def _asks_for_nothing(cls, name: object, value: object) -> bool:
        if name in cls.ignored:
            return True
        if name not in cls.neutral:
            return False
        if value is not None and value not in cls.neutral[str(name)]:
            refuse(str(name), "is not supported")
        return True

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name in sorted(cls.ignored):
            properties[name] = {"description": "Accepted and ignored."}
        for name, values in cls.neutral.items():
            properties[name] = {"enum": [*values, None], "description": "Not supported; these values ask for nothing."}
        return schema


def number(low: float, high: float, *, above: bool = False) -> WithJsonSchema:
    """The range that ``SamplingParams`` checks, for the description of a field."""
    return WithJsonSchema({"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high})


def integer(low: int, high: int) -> WithJsonSchema:
    """As ``number``, of whole numbers."""
    return WithJsonSchema({"type": "integer", "minimum": low, "maximum": high})


def array(items: Mapping[str, Any], *, least: int = 0, most: int | None = None) -> dict[str, Any]:
    bound = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": dict(items), "minItems": least, **bound}


Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, integer(0, MAX_INT32)]
TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": MAX_INT32}
