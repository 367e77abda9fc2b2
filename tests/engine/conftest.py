import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "models"), str(HERE / "parallel")]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny random model, made once: tiny_folder("qwen3")."""
    from tiny_models import TINY, save_tiny

    folders = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("tiny") / name
            save_tiny(TINY[name], folders[name])
        return folders[name]

    return folder
