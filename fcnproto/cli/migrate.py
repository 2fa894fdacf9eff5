"""Convert every net in a folder, each compared with its references, with one report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _nets, _options, _output
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from fcnproto.migration import Outcome


@click.command("migrate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=_files.OutputFolder(), help="Folder for the converted files and the report."
)
@click.option(
    "--to",
    "targets",
    metavar="A,B",
    default="py,safetensors",
    show_default=True,
    help="Of py, safetensors, onnx, pt2.",
)
@_options.json_option
@_nets.net_options(shapes=False, device="cpu")
def command(folder: Path, output: Path, targets: str, as_json: bool, nets: _nets.NetOptions) -> int:
    """Find every net in FOLDER and below, pair it with its weights, compare it with what there is (recordings in the
    folder, float64, OpenCV), convert it, and compare the converted files too.

    OUT/report.html and OUT/report.json say what was done, with versions, hashes, tolerances and verdicts. Started again
    it goes on where it stopped. The exit status is 1 where a net failed or departs.
    """
    from fcnproto.migration import migrate

    wanted = list(dict.fromkeys(word.strip().removeprefix(".") for word in targets.split(",") if word.strip()))

    def tell(index: int, count: int, entry: dict[str, Any]) -> None:
        _output.note(f"{index} of {count}: {printable(entry['net'], 100)}: {entry['verdict']}")

    outcome = migrate(folder, output, wanted, tell=tell, device=nets.device, **nets.state)
    if as_json:
        _output.print_json(outcome.report)
    else:
        _print(outcome)
    return 0 if outcome.sound else 1


def _print(outcome: Outcome) -> None:
    rows = []
    for net in outcome.report["nets"]:
        worst = [one["worst"] for one in net["compared"] if "worst" in one]
        made = ", ".join(one["target"] for one in net["converted"] if "error" not in one)
        reason = net["error"] or next(
            (f"{one['target']}: {one['error']}" for one in net["converted"] if "error" in one), ""
        )
        deviation = f"{max(worst):.1e}" if worst else ""
        rows.append(
            [
                printable(net["net"], 100),
                printable(net.get("weights", ""), 100),
                net["verdict"],
                deviation,
                made,
                reason,
            ]
        )
    columns = ["net", "weights", "verdict", "deviation", "converted", "why"]
    _output.print_table(columns, rows, numeric=["deviation"], optional=["weights", "converted"])
    _output.note(f"{', '.join(map(str, outcome.files))}")
