"""The wheel holds everything that the package needs, the nets among it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fcnproto

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="setuptools of 77 or newer is not installed")
    pytest.importorskip("pip", reason="pip is not installed")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("fcnproto", "models", "docs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(target), str(source)], check=True, capture_output=True)
    (found,) = target.glob("*.whl")
    return found


def test_the_metadata_are_whole() -> None:
    """`all` brings every extra for users, the classifiers name what `requires-python` allows, the citation this
    version; what the repository's visitors look for is there."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (brought,) = extras["all"]
    assert set(re.findall(r"\w+", brought.partition("[")[2])) == set(extras) - {"all", "dev", "site"}
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(project["urls"])
    minors = [int(found) for found in re.findall(r"Python :: 3\.(\d+)", " ".join(project["classifiers"]))]
    assert project["requires-python"] == f">=3.{minors[0]}" and minors == [*range(minors[0], minors[-1] + 1)]
    assert f"\nversion: {fcnproto.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for name in ("CONTRIBUTING.md", "SECURITY.md", "LICENSE", "docs/releasing.md", ".github/ISSUE_TEMPLATE/config.yml"):
        assert (ROOT / name).is_file(), name


@pytest.mark.slow
def test_every_module_and_model_is_in_the_wheel(wheel: Path) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fcnproto").rglob("*.py")} | {"fcnproto/py.typed"}
    expected |= {f"fcnproto/_models/{path.name}" for path in (ROOT / "models").glob("*.py")}
    for suffix in ("prototxt", "caffemodel", "json", "npz"):
        models = (ROOT / "models").rglob(f"*.{suffix}")
        expected |= {f"fcnproto/_models/{path.relative_to(ROOT / 'models').as_posix()}" for path in models}
    expected |= {
        f"fcnproto/_docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in (ROOT / "docs").rglob("*.md")
    }
    with zipfile.ZipFile(wheel) as archive:
        assert not any(re.match(r"fcnproto/_docs/.*[.]py", name) for name in archive.namelist())
        assert expected - set(archive.namelist()) == set()
        assert not any(name.startswith(("tests/", "models/", "benchmarks/")) for name in archive.namelist())


@pytest.mark.slow
def test_the_installed_package_finds_its_models(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "fcnproto", "zoo", "path", "voc-fcn8s"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "site" / "fcnproto" / "_models" / "voc-fcn8s" / "deploy.prototxt"
    code = "from fcnproto import zoo; print(zoo.definitions('catalog').__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path / "site"))
