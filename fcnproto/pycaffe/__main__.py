"""`python -m fcnproto.pycaffe SCRIPT [ARGS...]`: the same as `fcnproto python`."""

from __future__ import annotations

import sys

from fcnproto.errors import UsageError
from fcnproto.pycaffe.script import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
