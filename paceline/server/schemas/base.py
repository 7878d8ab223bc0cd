"""Knows what all bodies share: strictness, fields that ask for nothing, numbers with their documented ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from paceline.core.errors import InvalidRequestError
from paceline.server.schemas.reading import FieldRules, Reading

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name} {why}", param=name)


class Strict(BaseModel):
    """No coercion (a bool is no int, a string no number; an int is a number); other fields as ``rules`` say."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
    rules: ClassVar[FieldRules] = FieldRules()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        return cls.rules.read(data, cls.model_fields, info.context) if isinstance(data, dict) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        cls.rules.describe(handler.resolve_ref_schema(schema))
        return schema


class Body(Strict):
    """A request body."""

    rules: ClassVar[FieldRules] = FieldRules(ignored=frozenset({"user"}))

    model: str | None = None
    """Must be a name of the served model, which is also the default."""

    @classmethod
    def of(cls, data: object, reading: Reading) -> Self:
        """Raises InvalidRequestError, ValidationError: what is wrong with it."""
        if not isinstance(data, dict):
            raise InvalidRequestError("the body must be a JSON object")
        return cls.model_validate(data, context=reading)


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
