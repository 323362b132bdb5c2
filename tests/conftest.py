"""What must be settled before anything of onebeat is imported: Triton's interpreter, and a cache of the tests' own."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

USERS = dict(os.environ)
"""The environment as it was, before the tests got a cache of their own."""

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["ONEBEAT_HOME"] = tempfile.mkdtemp(prefix="onebeat-tests-")
atexit.register(shutil.rmtree, os.environ["ONEBEAT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def pulled_router() -> Path:
    """The default router's folder where somebody has pulled it; without it, what needs it is skipped."""
    from onebeat.engine.default_router import BACKBONE_FILES, cache_folder_of, default_router_path

    folder = default_router_path(cache_folder_of(USERS))
    if not all((folder / name).is_file() for name in BACKBONE_FILES):
        pytest.skip(f"the default router is not in {folder}: run `onebeat pull` once to enable this test")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices are quicker in one thread, several times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
