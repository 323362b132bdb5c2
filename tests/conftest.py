"""What must be settled before anything of onebeat is imported: Triton's interpreter, and a cache of the tests' own."""

import atexit
import os
import shutil
import tempfile

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["ONEBEAT_HOME"] = tempfile.mkdtemp(prefix="onebeat-tests-")
atexit.register(shutil.rmtree, os.environ["ONEBEAT_HOME"], ignore_errors=True)
