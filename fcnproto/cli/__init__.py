"""The command line: one file per command.

A module `name.py` in this package, unless its name begins with an underscore, is the command `fcnproto name`. It
defines `command` (a click command or group); the first line of its docstring is the command's line in
`fcnproto --help`, which is read without importing the module. What is slow to import (torch, numpy, `fcnproto.net`) is
imported within functions.
"""
