"""Run a script written for pycaffe: `import caffe` works, and Python 2 is translated in memory."""

from __future__ import annotations

import contextlib
import sys

import click

from fcnproto.cli import _options, _output


@click.command(
    "python",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[--json]",
)
@click.argument("arguments", metavar="[SCRIPT | -m MODULE | -c STATEMENTS] [ARGS...]", nargs=-1, type=click.UNPROCESSED)
@_options.json_option
def command(arguments: tuple[str, ...], as_json: bool) -> int:
    """Run a script (or a module, statements, a prompt) as `python` would, with fcnproto's own module `caffe`.

    The script's folder comes first on sys.path, and the arguments are its own. It and the modules it imports may be
    Python 2; lines on stderr say which were translated. The exit status is the script's. With --json before SCRIPT
    what it prints goes to stderr, and stdout gets its exit status and which files were translated.
    """
    from fcnproto.pycaffe import python2
    from fcnproto.pycaffe.script import main

    if not as_json:
        return main(arguments)
    before = len(python2.translated)  # the list is the process's
    with contextlib.redirect_stdout(sys.stderr):
        status = main(arguments)
    _output.print_json({"arguments": arguments, "status": status, "translated": python2.translated[before:]})
    return status
