"""docs/torch.md: each block runs as it stands, on drawn scenes in the working directory; and the table beside others."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcnproto
from fcnproto import UsageError
from fcnproto.data.augmentation import through
from fcnproto.scenes.scenes import draw_scene

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "torch.md").read_text(encoding="utf-8"), re.DOTALL)
HEAVY = ("lightning", "torchvision", "albumentations")


def needs(block: str) -> list[str]:
    """The packages that a block imports."""
    return sorted(set(re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)))


def title(block: str) -> str:
    return (
        "-".join(name for name in needs(block) if name not in ("fcnproto", "torch"))
        or block.split("\n")[3][:30].strip()
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        Path(name).mkdir()
    for number in range(2):
        scene = draw_scene((3, number), 48)
        Image.fromarray(scene.image).save(f"images/{number}.png")
        Image.fromarray(scene.label).save(f"masks/{number}.png")
    sys.path.insert(0, str(Path(__file__).parent / "solver"))
    import solver_toy as toy

    toy.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{number}-{title(block)}" for number, block in enumerate(BLOCKS)])
def test_block(block: str, folder: Path) -> None:
    for name in needs(block):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "docs/torch.md", "exec"), {"__name__": "page"})


def test_the_page_has_what_it_promises() -> None:
    text = "\n".join(BLOCKS)
    for name in ("lightning", "torchmetrics", "albumentations", "torchvision", "save_pretrained", "torch.export"):
        assert name in text
    assert len(BLOCKS) >= 12


def test_masks_and_images_change_alike(folder: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    images, masks = through(albumentations.HorizontalFlip(p=1))(({"data": image}, {"label": mask, "other": mask}))
    assert (np.asarray(images["data"]) == np.asarray(image)[:, ::-1]).all()
    assert (masks["label"] == mask[:, ::-1]).all() and (masks["other"] == mask[:, ::-1]).all()
    with pytest.raises(UsageError, match="one image at a time; the scene has data, hha"):
        through(albumentations.HorizontalFlip(p=1))(({"data": image, "hha": image}, {"label": mask}))
    with pytest.raises(UsageError, match=r"no transform of albumentations or torchvision\.transforms\.v2"):
        through(lambda scene: scene)


def test_the_table_beside_others() -> None:
    """What it says of fcnproto exists, and it has the columns that are promised."""
    page = (DOCS / "compared.md").read_text(encoding="utf-8").partition("## How")[0]
    assert "| feature | torchvision | timm | HF transformers | pycaffe | fcnproto |" in page
    rows = [row.strip("|").split("|") for row in page.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 15 and all(len(row) == 6 for row in rows)
    ours = " ".join(row[5] for row in rows)
    for name in re.findall(r"`net\.(\w+)", ours):
        assert hasattr(fcnproto.Net, name), name
    for name in re.findall(r"`(\w+)`", ours):
        known = hasattr(fcnproto, name) or hasattr(fcnproto.Net, name) or name == "finetune"
        assert known, name
    assert "17 definitions" in ours and len(fcnproto.list_models()) == 18  # fcn-mini is the tiny one
    for target in re.findall(r"\]\(([\w.-]+\.md)\)", page):
        assert (DOCS / target).exists(), target


def test_transforms_of_torchvision_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What v2 would be given and gives back, with a stand-in for the package: its wheel may need another PyTorch."""
    import types

    import torch

    functional = types.SimpleNamespace(
        pil_to_tensor=lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1),
        to_pil_image=lambda value: Image.fromarray(value.permute(1, 2, 0).numpy()),
    )
    modules: dict[str, types.ModuleType] = {
        name: types.ModuleType(name) for name in ("torchvision", "torchvision.tv_tensors")
    }
    modules["torchvision.transforms"] = types.ModuleType("torchvision.transforms")
    modules["torchvision.transforms.v2"] = types.ModuleType("torchvision.transforms.v2")
    modules["torchvision.tv_tensors"].__dict__.update(Image=lambda value: value, Mask=lambda value: value)
    modules["torchvision"].__dict__.update(tv_tensors=modules["torchvision.tv_tensors"])
    modules["torchvision.transforms.v2"].__dict__.update(functional=functional)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    class Flip:
        def __call__(self, images: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> object:
            return {k: v.flip(-1) for k, v in images.items()}, {k: v.flip(-1) for k, v in masks.items()}

    Flip.__module__ = "torchvision.transforms.v2"
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    images, masks = through(Flip())(({"color": image, "hha": image}, {"label": mask}))
    assert (np.asarray(images["hha"]) == np.asarray(image)[:, ::-1]).all() and list(images) == ["color", "hha"]
    assert (masks["label"] == mask[:, ::-1]).all()
