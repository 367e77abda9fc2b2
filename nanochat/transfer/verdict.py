"""Does this engine run a model? Asked of its config.json alone, before anything is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanochat.errors import InvalidModel, ModelError, UnsupportedModel
from nanochat.transfer.scratch import scratch_folder

if TYPE_CHECKING:
    from nanochat.engine.models.config import ModelConfig


def judge(repo_id: str, config: bytes) -> ModelConfig:
    """The configuration, or UnsupportedModel / InvalidModel with the repository's name."""
    from nanochat.engine.models.config import ModelConfig

    with scratch_folder() as folder:
        (folder / "config.json").write_bytes(config)
        try:
            return ModelConfig.from_folder(folder)
        except (UnsupportedModel, InvalidModel) as error:
            # The folder is ours and gone in a moment: the text speaks of the repository.
            text = str(error).replace(str(folder.resolve()), repo_id).replace(str(folder), repo_id)
            text = text.replace(folder.name, repo_id)
            raise type(error)(text if repo_id in text else f"{repo_id}: {text}") from error


def why_not(repo_id: str, config: dict[str, Any]) -> str | None:
    """Why this engine does not run a model of which the hub's search tells a part of the config; None when it does."""
    from nanochat.engine.models.families import refuse_unsupported
    from nanochat.engine.models.fields import Fields

    architectures: Any = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return f"{repo_id} does not say what architecture it is"
    try:
        refuse_unsupported(Fields(config, repo_id), str(architectures[0]))
    except ModelError as error:
        return str(error)
    return None
