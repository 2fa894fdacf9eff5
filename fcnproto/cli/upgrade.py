"""Bring nets and solvers in Caffe's old formats up to the current one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _files, _nets, _options, _output

if TYPE_CHECKING:
    from google.protobuf.message import Message


@click.command("upgrade")
@click.argument("source", metavar="IN", type=_nets.MODEL)
@click.argument("target", metavar="OUT", type=_files.OutputFile(may_be_input=True))
@_options.json_option
@_nets.layers_option
def command(source: Path, target: Path, as_json: bool) -> int:
    """Read the net or solver IN, in text (.prototxt) or binary (.caffemodel) form, and write it to OUT in the same form
    and in the current format.

    Which of them it is is seen from the content. The exit status is 1 if something in it has no place in the current
    format; OUT is written then too. OUT may be IN, or - for stdout.
    """
    from fcnproto.atomic import atomic_write
    from fcnproto.meta import comment, from_comment
    from fcnproto.schema.kinds import HEAD_BYTES, looks_binary
    from fcnproto.schema.text import write_message
    from fcnproto.schema.upgrading import read_binary_net, read_text, upgrade

    with open(source, "rb") as file:
        binary = looks_binary(file.read(HEAD_BYTES))
    message: Message = read_binary_net(source) if binary else read_text(source)
    before = message.SerializeToString(deterministic=True) if not binary else b""
    compatible = upgrade(message, str(source))
    if not binary and message.SerializeToString(deterministic=True) == before:
        _output.note(f"{source}: is in the current format already")
    if binary:
        with atomic_write(target) as file:
            file.write(message.SerializeToString())
    else:
        write_message(target, message, comment(from_comment(source)))
    if as_json:
        _output.print_json({"file": target, "binary": binary, "compatible": compatible})
    return 0 if compatible else 1
