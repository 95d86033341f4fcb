"""@tool: a plain function outside of an agent, a schema and a signature for models and frameworks."""

from __future__ import annotations

import asyncio
import inspect
import typing
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from lastevent import CallFailed, Context, ToolError, tool
from lastevent.errors import AppError, InvalidValue
from lastevent.tools import as_tool
from tests.lastevent.apps.desk import Order, find_order, refund


def made(function: Any) -> Any:
    found = as_tool(function)
    assert found is not None
    return found


@tool
def named_like_pydantic(schema: str, model_config: int = 1, _copy: bool = False) -> None:
    """Its parameters have names that pydantic has taken."""


@tool(name="other-name", title="Doing it", timeout_s=None, public=False, approval=True)
async def nested(order: Order, tags: list[str] | None = None) -> None: ...


class Strict(BaseModel):
    when: Annotated[int, Field(gt=0)]


@tool
def strict(one: Strict, two: typing.Literal["a"]) -> None: ...


async def test_outside_of_an_agent_it_is_the_plain_function() -> None:
    assert await find_order("A17") == Order(order_id="A17", cents=1200)
    assert asyncio.iscoroutinefunction(find_order)
    assert not asyncio.iscoroutinefunction(refund)
    assert inspect.isfunction(refund)
    assert refund.__name__ == "refund"


def test_without_a_run_a_context_that_is_not_given_says_nothing_to_nobody() -> None:
    assert refund("A17", 5).startswith("refunded 5 of A17 under ")
    assert refund(order_id="A17", cents=5).startswith("refunded 5")


def test_a_test_may_give_its_own_context() -> None:
    assert refund(Context(), "A17", 5).startswith("refunded 5")

    class Fake:
        idempotency_key = "mine"

        def progress(self, *_: object, **__: object) -> None: ...

    assert refund(Fake(), "A17", 5) == "refunded 5 of A17 under mine"


def test_what_frameworks_see_has_no_context() -> None:
    assert list(inspect.signature(refund).parameters) == ["order_id", "cents"]
    hints = typing.get_type_hints(refund, include_extras=True)
    assert hints.keys() == {"order_id", "cents", "return"}
    assert hints["cents"].__metadata__[0].metadata[0].gt == 0


def test_the_schema_is_the_signature_s() -> None:
    assert made(refund).announced() == {
        "name": "refund",
        "title": None,
        "description": "Refund an order.",
        "input_schema": {
            "type": "object",
            "properties": {
                "order_id": {"title": "Order Id", "type": "string"},
                "cents": {"title": "Cents", "type": "integer", "exclusiveMinimum": 0, "maximum": 50_000},
            },
            "required": ["order_id", "cents"],
            "additionalProperties": False,
        },
        "idempotent": False,
        "key": ["order_id"],
        "has_resolve": False,
        "timeout_s": 20,
        "public": True,
        "approval": "ask",
        "agent": None,
    }


def test_options_are_announced() -> None:
    told = made(nested).announced()
    assert (told["name"], told["title"], told["timeout_s"]) == ("other-name", "Doing it", None)
    assert (told["public"], told["approval"]) == (False, "always")
    assert told["input_schema"]["required"] == ["order"]
    assert "$defs" in told["input_schema"]


def test_parameters_may_have_names_that_pydantic_has_taken() -> None:
    schema = made(named_like_pydantic).announced()["input_schema"]
    assert list(schema["properties"]) == ["schema", "model_config", "_copy"]
    args = made(named_like_pydantic).arguments.validate({"schema": "s", "_copy": "true"})
    assert args == {"schema": "s", "model_config": 1, "_copy": True}


def test_types_are_lenient_and_names_are_not() -> None:
    arguments = made(refund).arguments
    assert arguments.validate({"order_id": "A17", "cents": "12"}) == {"order_id": "A17", "cents": 12}
    with pytest.raises(InvalidValue, match=r"^cents: Field required; centz: Extra inputs are not permitted$"):
        arguments.validate({"order_id": "A17", "centz": 12})


def test_an_error_tells_the_place_and_not_the_value() -> None:
    with pytest.raises(InvalidValue) as refused:
        made(strict).arguments.validate({"one": {"when": "planted"}, "two": "planted"})
    assert "one.when: " in str(refused.value)
    assert "planted" not in str(refused.value)


def test_a_result_comes_back_as_its_annotation_says() -> None:
    assert made(find_order).restore({"order_id": "A17", "cents": 1}) == Order(order_id="A17", cents=1)
    assert made(find_order).restore({"unlike": 1}) == {"unlike": 1}


def _star(*args: int) -> None: ...
def _field(x: int = Field(gt=0)) -> None: ...
def _no_schema(x: asyncio.Lock) -> None: ...
def _unknown(x: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def _yields(x: int) -> Any:
    yield x


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (_star, {}, "takes \\*args"),
        (_field, {}, "Annotated"),
        (_no_schema, {}, "_no_schema"),
        (_unknown, {}, "NoSuchType"),
        (_yields, {}, "yields"),
        (lambda: None, {}, "'<lambda>'"),
        (find_order, {"timeout_s": 0}, "timeout_s"),
        (find_order, {"key": ("nothing",)}, "key="),
    ],
)
def test_what_cannot_be_a_tool_is_said_when_the_app_is_imported(
    function: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(AppError, match=said):
        made(tool(**options)(function)).announced()


def test_a_failed_call_is_a_tool_error() -> None:
    assert issubclass(CallFailed, ToolError)
    assert CallFailed("timeout", "too long").code == "timeout"
