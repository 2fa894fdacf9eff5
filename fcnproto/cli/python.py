"""Run a script written for pycaffe: `import caffe` works, and Python 2 is translated in memory."""

from __future__ import annotations

import click


@click.command(
    "python",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="",
)
@click.argument("arguments", metavar="[SCRIPT | -m MODULE | -c STATEMENTS] [ARGS...]", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Run a script (or a module, statements, a prompt) as `python` would, with fcnproto's own module `caffe`.

    The script's folder comes first on sys.path, and the arguments are its own. It and the modules it imports may be
    Python 2; lines on stderr say which were translated. The exit status is the script's.
    """
    from fcnproto.pycaffe.script import main

    return main(arguments)
