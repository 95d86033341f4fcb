"""`provider_options` against an SDK's own types: the TypedDicts of its parameters.

Only what was given is looked at, so there is nothing to build beforehand: pydantic takes a second for the schema of
OpenAI's parameters, and lets unknown keys of a TypedDict pass.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict  # typing's own does not know those of typing_extensions

from worker.providers.failures import invalid_input, shown

EXTRA_BODY = "extra_body"


def checked_options(
    request: dict[str, Any], name: str, params: type, *, not_here: frozenset[str] | set[str]
) -> dict[str, Any]:
    """What the request's `provider_options` say for the provider `name`, to be merged over its request.

    `params`: the TypedDict of the SDK's create call. `not_here`: which of its names may not be set so. `extra_body` is
    merged unchecked. Raises ProviderFailure (invalid_input), naming the place and repeating no value.
    """
    of_each = request.get("provider_options") or {}
    if not isinstance(of_each, dict):
        raise invalid_input("provider_options is not an object.")
    given = of_each.get(name)
    if not given:
        return {}
    place = f"provider_options.{name}"
    if not isinstance(given, dict):
        raise invalid_input(f"{place} is not an object.")
    options = {key: value for key, value in given.items() if key != EXTRA_BODY}
    extra = given.get(EXTRA_BODY) or {}
    if not isinstance(extra, dict):
        raise invalid_input(f"{place}.{EXTRA_BODY} is not an object.")
    if set_elsewhere := not_here & (options.keys() | extra.keys()):
        raise invalid_input(f"{place}.{min(set_elsewhere)} cannot be set there.")
    for key, value in options.items():
        at = _at(place, key)
        if key not in _hints(params):
            raise invalid_input(f"{at} is no parameter of this provider.")
        if wrong := _wrong(value, _hints(params)[key], at):
            raise invalid_input(wrong)
    return {**options, **extra}


@cache
def _hints(typed_dict: type) -> dict[str, Any]:
    return get_type_hints(typed_dict, include_extras=True)


def _at(place: str, key: str) -> str:
    return f"{place}.{shown(key)[:60]}"


def _wrong(value: Any, wanted: Any, place: str) -> str | None:
    """What is wrong with a value, in words that follow "cannot take this request:"; None if nothing is."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Annotated, Required, NotRequired):
        return _wrong(value, arguments[0], place)
    if origin in (Union, types.UnionType):
        return _wrong_of_any(value, arguments, place)
    if origin is Literal:
        is_one = any(value == one and type(value) is type(one) for one in arguments)
        return None if is_one else f"{place} is none of {', '.join(map(str, arguments))}."
    if is_typeddict(wanted):
        return _wrong_object(value, wanted, place)
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, dict):
            return f"{place} is not an object."
        if _are_plain(value.values(), arguments[1]):
            return None
        return _first(
            _wrong(one, arguments[1], _at(place, key)) for key, one in value.items() if _wrong(one, arguments[1], "")
        )
    if origin is not None and len(arguments) == 1:  # List, Iterable, SequenceNotStr …
        if not isinstance(value, list):
            return f"{place} is not a list."
        if _are_plain(value, arguments[0]):
            return None
        return _first(_wrong(one, arguments[0], f"{place}[{index}]") for index, one in enumerate(value))
    return _wrong_plain(value, wanted, place)


_PLAIN = {str: "a string", bool: "true or false", int: "an integer", float: "a number", type(None): "null"}


def _are_plain(values: Iterable[Any], wanted: Any) -> bool:
    """All are of this type, seen at once: a body may have 400,000, and to look at each took seconds of the loop."""
    return wanted in (object, Any) or (wanted in _PLAIN and set(map(type, values)) <= _types_of(wanted))


def _types_of(wanted: type) -> set[type]:
    return {int, float} if wanted is float else {wanted}


def _wrong_plain(value: Any, wanted: Any, place: str) -> str | None:
    if wanted not in _PLAIN:
        return None  # object, Any, and what JSON has no word for
    return None if type(value) in _types_of(wanted) else f"{place} is not {_PLAIN[wanted]}."


def _wrong_object(value: Any, wanted: Any, place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place} is not an object."
    hints = _hints(wanted)
    for key in value:
        if key not in hints:
            return f"{_at(place, key)} is not known to this provider."
    for key, hint in hints.items():  # __required_keys__ knows none where annotations are strings
        if get_origin(hint) is Required and key not in value:
            return f"{_at(place, key)} is missing."
    return _first(_wrong(one, hints[key], _at(place, key)) for key, one in value.items())


def _wrong_of_any(value: Any, wanted: tuple[Any, ...], place: str) -> str | None:
    """What is wrong by that of the types which comes nearest: the one whose fault lies deepest."""
    faults = []
    for one in wanted:
        wrong = _wrong(value, one, place)
        if wrong is None:
            return None
        faults.append((_says_its_type(value, one), wrong.count(".") + wrong.count("["), wrong))
    if isinstance(value, dict) and "type" in value and not any(fault[0] for fault in faults):
        return f"{place}.type is not known to this provider."
    return max(faults, key=lambda fault: fault[:2])[2]


def _says_its_type(value: Any, wanted: Any) -> bool:
    """Of objects that are told apart by a `type`, this is the one."""
    if not is_typeddict(wanted) or not isinstance(value, dict) or "type" not in _hints(wanted):
        return False
    return _wrong(value.get("type"), _hints(wanted)["type"], "") is None


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault), None)
