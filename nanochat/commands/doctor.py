"""`nanochat doctor`: what was found on this machine."""

from __future__ import annotations

import json
import sys

import click

from nanochat import doctor as examination
from nanochat.sanitize import sanitize_line


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what was found on this machine. Exits with 1 when something that is needed is wrong."""
    facts = examination.examine()
    if as_json:
        click.echo(json.dumps(examination.as_dict(facts), indent=2, ensure_ascii=sys.stdout.isatty()))
    else:
        for line in examination.report(facts):
            click.echo(sanitize_line(line))
    sys.stdout.flush()
    if any(fact.wrong for fact in facts):
        sys.exit(1)
