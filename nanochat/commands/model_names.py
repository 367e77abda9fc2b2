"""What a model's name means that was typed as a command's argument: one that is here, or a repository on the hub."""

from __future__ import annotations

from nanochat import hub
from nanochat.errors import ModelNotFound, UsageError
from nanochat.hub import LocalModel
from nanochat.modelhub import catalog, starter
from nanochat.settings import Paths


def on_this_machine(name: str, paths: Paths) -> LocalModel:
    """The model that a name means, whole or not; nothing is fetched. ModelNotFound when it is not here."""
    models, wanted = hub.local_models(paths), name.lower()
    if wanted == hub.STARTER:
        wanted = starter.NAME.lower()
    found = [one for one in models if one.name.lower() == wanted]
    found = found or [one for one in models if one.name.lower().endswith("/" + wanted)]
    if len(found) == 1:
        return found[0]
    if wanted == starter.NAME.lower():
        raise ModelNotFound(
            "the starter model is not on this machine: `nanochat models pull starter` fetches it"
        )
    return hub.resolve(name, paths=paths)


def full_name(name: str) -> str:
    """`org/name` on the hub for what a user typed: a recommended model may be named by its end. UsageError: any other."""
    if "/" in name:
        return name
    found = [one.repo_id for one in catalog.recommended() if one.repo_id.lower().endswith("/" + name.lower())]
    if len(found) != 1:
        raise UsageError(
            f"{name!r} is not a whole name: give org/name; `nanochat models search {name}` finds it"
        )
    return found[0]
