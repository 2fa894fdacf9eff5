"""Starts drivers for `test_driver_killed` by forking: what a driver imports is imported once.

Reads lines of JSON, the arguments of a command with the file for its stderr and stdout; answers with the process's
number, and when it has ended with its status.
"""

from __future__ import annotations

import json
import os
import sys

import ray.data  # noqa: F401
import torch  # noqa: F401

import fcnproto.cluster.features
import fcnproto.net
import fcnproto.segment.segmenter  # noqa: F401
from fcnproto.cli._main import main


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = main(request["arguments"])
            sys.stdout.flush()
            os._exit(status)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
