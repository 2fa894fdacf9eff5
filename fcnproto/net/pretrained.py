"""A net as a folder in the layout of the Hugging Face hub, and back.

`deploy.prototxt` defines the net, `model.safetensors` holds its weights, `config.json` what belongs to it, `README.md`
is a model card. Nothing in such a folder is code.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, UsageError, first_line
from fcnproto.escaping import markup, printable
from fcnproto.meta import comment
from fcnproto.net.described import known_meta
from fcnproto.net.weights import definition
from fcnproto.schema.extract import loadable
from fcnproto.schema.text import write_message

if TYPE_CHECKING:
    from fcnproto.net.net import Net

PathLike = str | os.PathLike[str]

MODEL, WEIGHTS, CONFIG, CARD = "deploy.prototxt", "model.safetensors", "config.json", "README.md"
_LONGEST = 2**26


def save_pretrained(net: Net, folder: PathLike) -> list[Path]:
    """Write a net as such a folder; returns the files. A README.md that is there is left alone."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    meta = known_meta(net)
    plain, _ = loadable(definition(net))
    write_message(place / MODEL, plain, comment(meta))
    net.save(place / WEIGHTS)
    classes = net.meta.classes
    config: dict[str, Any] = {
        "architectures": ["fcnproto.Net"],
        "library_name": "fcnproto",
        "model_type": "caffe",
        "phase": net.phase,
        "dialect": net.dialect,
        "num_labels": len(classes),
        "id2label": {str(label): name for label, name in enumerate(classes)},
        "meta": None if meta is None else meta.as_dict(),
    }
    with atomic_write(place / CONFIG, "w") as file:
        file.write(json.dumps(config, indent=1) + "\n")
    if not (place / CARD).exists():
        with atomic_write(place / CARD, "w") as file:
            file.write(_card(net))
    return [place / name for name in (MODEL, WEIGHTS, CONFIG, CARD)]


def push_to_hub(
    net: Net,
    name: str,
    *,
    commit_message: str = "Upload of a net with fcnproto",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Write a net's folder to a repository of the hub: see `Net.push_to_hub`."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UsageError(
            "the hub's nets go there by the package huggingface_hub (pip install 'fcnproto[hub]')"
        ) from None
    with tempfile.TemporaryDirectory(prefix="fcnproto-") as folder:
        save_pretrained(net, folder)
        try:
            hub = HfApi(token=token)
            full_name = hub.create_repo(name, private=private, exist_ok=True).repo_id
            has_card = hub.file_exists(full_name, CARD, revision=branch)
            made = hub.upload_folder(
                repo_id=full_name,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=[CARD] if has_card else None,
            )
        except Exception as error:  # those of the hub and of the library that it is reached by, of several kinds
            raise DataError(f"{printable(name, 200)}: not brought to the hub: {first_line(error)}") from error
    return str(made.pr_url if create_pr else made.commit_url)


def _card(net: Net) -> str:
    """A model card: what the hub reads at its head, and how the net is loaded."""
    meta = net.meta
    title = markup(printable(meta.name or net.graph.name or "net", 100).replace("\n", " "))
    task = "pipeline_tag: image-segmentation\n" if meta.outputs else ""
    lines = [
        f"---\nlibrary_name: fcnproto\n{task}tags:\n- caffe\n- fcnproto\n---\n",
        f"# {title}\n",
        "A Caffe net, loaded with [fcnproto](https://pypi.org/project/fcnproto):\n",
        "```python",
        "import fcnproto\n",
        'net = fcnproto.Net.from_pretrained("FOLDER_OR_REPOSITORY")',
        'labels = net.segment("photo.jpg")[0].labels',
        "```\n",
    ]
    if meta.classes:
        names = ", ".join(markup(printable(name, 100)) for name in meta.classes)
        lines.append(f"Classes: {names}\n")
    return "\n".join(lines)


def from_pretrained(name: PathLike, revision: str | None = None, **options: Any) -> Net:
    """The net in such a folder, or in a repository of the hub: see `Net.from_pretrained`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(os.fspath(name), revision)
    for file in (MODEL, WEIGHTS):
        if not (folder / file).is_file():
            raise DataError(f"{folder}: has no {file}; expected a folder that save_pretrained wrote")
    from fcnproto.net.loading import load

    config = _config(folder / CONFIG)
    reading: dict[str, Any] = {"phase": config.get("phase") or "test", "dialect": config.get("dialect")} | options
    return load(folder / MODEL, folder / WEIGHTS, **reading)


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST:
            raise DataError(f"{path}: is too large for a configuration")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no readable JSON ({printable(first_line(error), 100)})") from None
    texts = {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
    return {key: texts[key] for key in ("phase", "dialect") if key in texts}


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(
            f"{printable(name, 200)}: no such folder; the hub's nets come with the package huggingface_hub "
            "(pip install 'fcnproto[hub]')"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[MODEL, WEIGHTS, CONFIG]))
    except (OSError, ValueError) as error:  # the hub's errors are ValueErrors and OSErrors
        raise DataError(
            f"{printable(name, 200)}: neither a folder nor had from the hub: {first_line(error)}"
        ) from error
