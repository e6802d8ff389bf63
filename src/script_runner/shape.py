"""What is read from outside by pydantic, described without loading it: it weighs 10 MB, and is needed once."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema


class Checked:
    """In ``Annotated``: what a value of the type goes through; ValueError with what was expected refuses it."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - as the file says

        return core_schema.no_info_after_validator_function(self._check, handler(source))


class Prepared:
    """In ``Annotated``: what becomes of what was written, of type ``takes``, before it is looked at."""

    def __init__(self, prepare: Callable[[Any], Any], *, takes: Any = None) -> None:
        self._prepare = prepare
        self._takes = takes

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - as the file says

        taken = None if self._takes is None else handler.generate_schema(self._takes)
        return core_schema.no_info_before_validator_function(
            self._prepare, handler(source), json_schema_input_schema=taken
        )


class Limits:
    """In ``Annotated``: ``gt``, ``ge``, ``le`` of a number, ``min_length`` of a list."""

    def __init__(self, **limits: float) -> None:
        self._limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        schema: CoreSchema = {**handler(source), **self._limits}
        return schema


class Said:
    """In ``Annotated``: what the JSON Schema says of it."""

    def __init__(self, description: str) -> None:
        self._description = description

    def __get_pydantic_json_schema__(
        self, schema: "CoreSchema", handler: "GetJsonSchemaHandler"
    ) -> dict[str, Any]:
        return {**handler(schema), "description": self._description}


class Shape:
    """A frozen dataclass that can be read: every mistake is found at once, unknown keys are mistakes."""

    __pydantic_config__: ClassVar[Any] = {
        "strict": True,
        "extra": "forbid",
        "arbitrary_types_allowed": True,
        "allow_inf_nan": False,
    }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        schema = handler(source)
        itself: Any = handler.resolve_ref_schema(schema)
        itself["strict"] = False  # an object of the file is one, though no instance; its fields are strict
        return schema

    @classmethod
    def read(cls, raw: Any) -> Self:
        """What ``raw`` says; pydantic's ValidationError, which is a ValueError, has all that is wrong with it."""
        found: Self = adapter(cls).validate_python(raw)  # type: ignore[arg-type] # a class is hashable
        return found


@functools.cache
def adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    """What reads, writes and describes values of a class of shape."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - as the file says

    return TypeAdapter(kind)
