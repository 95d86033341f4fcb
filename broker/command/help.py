"""The list of commands: in groups, in the order in which somebody needs them, each with its whole first sentence."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

TRY, LOOK, PROVE, RUN = "Try it", "Look", "Prove", "Run it"


class Grouped(TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group in (TRY, LOOK, PROVE, RUN):
            named = [(name, self.commands[name]) for name in self.list_commands(ctx)]
            shown = [(name, one) for name, one in named if _group(one) == group and not one.hidden]
            with formatter.section(group):
                formatter.write_dl([(name, _first_sentence(one.help or "")) for name, one in shown])


def _group(command: Any) -> str | None:
    group: str | None = getattr(command, "rich_help_panel", None)
    return group


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")
