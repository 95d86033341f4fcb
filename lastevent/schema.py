"""JSON Schemas from signatures, and values validated by them. pydantic is imported here, on first use.

Validation is lenient about types ("3" is an int: models write such things) and strict about names: what the signature
does not have is refused.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from lastevent.errors import AppError, InvalidValue

if typing.TYPE_CHECKING:
    import pydantic

_MAX_PLACE = 100
"""Characters of a place in an error: keys are a stranger's, and may be as long as the whole input."""

_REPEATS_INPUT = frozenset(["error", "tag"])
"""What in an error's context is made of the input; its message repeats it."""


class Value:
    """One value of a type: an agent's input, a tool's result."""

    def __init__(self, annotation: Any, whose: str) -> None:
        self._annotation, self._whose = annotation, whose

    @cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        from pydantic import TypeAdapter

        try:
            return TypeAdapter(self._annotation)
        except Exception as error:
            raise AppError(f"{self._whose} has a type that pydantic cannot validate: {_in_short(error)}") from error

    def json_schema(self) -> dict[str, Any]:
        try:
            return self._adapter.json_schema()
        except AppError:
            raise
        except Exception as error:
            raise AppError(f"{self._whose} has a type that has no JSON Schema: {_in_short(error)}") from error

    def validate(self, value: Any) -> Any:
        """InvalidValue tells the place."""
        return _validated(self._adapter.validate_python, value)

    def restore(self, value: Any) -> Any:
        """A JSON value as the type has it, or as it is, if it does not fit: annotations of results may be careless."""
        if self._annotation is Any:
            return value
        try:
            return self._adapter.validate_python(value)
        except (AppError, ValueError):
            return value


class Arguments:
    """What a function takes, by name."""

    def __init__(self, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], whose: str) -> None:
        self._parameters, self._hints, self._whose = parameters, hints, whose
        for name, parameter in parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise AppError(f"{whose} takes {parameter}: a model gives arguments by name, so each needs one.")
            if type(parameter.default).__name__ == "FieldInfo":
                raise AppError(f"{whose}: write {name}: Annotated[…, Field(…)], so that the function has its default.")

    @cached_property
    def _model(self) -> type[pydantic.BaseModel]:
        from pydantic import ConfigDict, Field, create_model

        # The fields have names of their own, since parameters may be named as pydantic's methods are (`schema`, `_x`).
        fields: dict[str, Any] = {}
        for number, (name, parameter) in enumerate(self._parameters.items()):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[f"p{number}"] = (self._hints.get(name, Any), Field(default, alias=name))
        config = ConfigDict(extra="forbid", title=self._whose)
        try:
            return create_model("Arguments", __config__=config, **fields)
        except Exception as error:
            raise AppError(
                f"{self._whose} has a parameter whose type pydantic cannot validate: {_in_short(error)}"
            ) from error

    def json_schema(self) -> dict[str, Any]:
        try:
            schema = self._model.model_json_schema()
        except AppError:
            raise
        except Exception as error:
            raise AppError(
                f"{self._whose} has a parameter whose type has no JSON Schema: {_in_short(error)}"
            ) from error
        schema.pop("title", None)
        schema.setdefault("properties", {})
        return schema

    def validate(self, args: Any) -> dict[str, Any]:
        """The arguments as the function takes them; InvalidValue tells the place."""
        model = _validated(self._model.model_validate, args)
        return {name: getattr(model, f"p{number}") for number, name in enumerate(self._parameters)}


def jsonable(value: Any) -> Any:
    """A JSON value for models, dataclasses, dates and the like. ValueError for what is none; NaN is null."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, inf_nan_mode="null")


def size_of(value: Any) -> int:
    """Bytes of a JSON value."""
    from pydantic_core import to_json

    return len(to_json(value, inf_nan_mode="null"))


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a signature. A name that is not known is an AppError here, and not at some call."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise AppError(f"{function.__qualname__}: a type of its signature is not known: {_in_short(error)}") from error


def _validated(validate: Callable[[Any], Any], value: Any) -> Any:
    from pydantic import ValidationError

    try:
        return validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise InvalidValue("; ".join(_told(one) for one in found[:5])) from None


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])[:_MAX_PLACE]
    repeats = _REPEATS_INPUT & set(error.get("ctx", ()))
    why = str(error["type"]).replace("_", " ") if repeats else str(error["msg"])
    return f"{place}: {why}" if place else why


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
