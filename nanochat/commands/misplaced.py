"""Options that stand before a command: each is refused by name, since a group would drop it without a word."""

from __future__ import annotations

import click
from click.core import ParameterSource

from nanochat.errors import UsageError


def refuse_misplaced(context: click.Context, why: str = "") -> None:
    """Check the options of a group whose command `context.invoked_subcommand` is about to run.

    Raises:
        UsageError: one was given; the text says where it belongs, or that the command has none such and `why`.
    """
    group, name = context.command, context.invoked_subcommand
    command = (
        group.get_command(context, name) if isinstance(group, click.Group) and name is not None else None
    )
    for parameter in group.params:
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        option, path = parameter.opts[0], f"{context.command_path} {name}"
        if command is not None and any(option in each.opts for each in command.params):
            value = "" if getattr(parameter, "is_flag", False) else f" {context.params[parameter.name or '']}"
            raise UsageError(f"give {option} after the command: {path} {option}{value}")
        raise UsageError(f"{path} takes no {option}{why}")
