"""The wheel brings one top-level package, and lives beside Hugging Face's `kernels` without touching it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def run(*command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_holds_one_package_with_every_part(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"onebeat", f"onebeat-{wheel.name.split('-')[1]}.dist-info"}
    sources = {
        f"onebeat/{path.relative_to(ROOT)}"
        for part in ("engine", "kernels", "conductor")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)
    assert "onebeat/py.typed" in names
    assert any(name.endswith("licenses/NOTICE") for name in names)


def test_wheel_installs_beside_hugging_face_kernels(wheel: Path, tmp_path: Path) -> None:
    theirs = importlib.metadata.distribution("kernels")
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    copied = {}
    for file in theirs.files or ():
        if file.parts[0] in ("kernels", f"kernels-{theirs.version}.dist-info") and file.suffix != ".pyc":
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(str(file.locate())).read_bytes())
            copied[target] = hashlib.sha256(target.read_bytes()).hexdigest()
    assert any(path.name == "__init__.py" for path in copied)

    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))

    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in copied} == copied
    where = "import importlib.util as u; print(u.find_spec('kernels').origin, u.find_spec('onebeat.kernels').origin)"
    found, ours = run(str(python), "-P", "-c", where).split()
    assert Path(found) == site / "kernels" / "__init__.py"
    assert Path(ours) == site / "onebeat" / "kernels" / "__init__.py"
    assert run(str(clean / "bin" / "onebeat"), "--version").startswith("onebeat ")
    run(sys.executable, "-m", "pip", "--python", str(python), "uninstall", "--yes", "onebeat")
    assert all(path.is_file() for path in copied)
