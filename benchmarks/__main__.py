"""`python -m benchmarks`: all measurements, one after the other."""

from __future__ import annotations

import sys

from benchmarks import inference, load

print("Loading\n")
load.main([])
print("\nInference\n")
sys.exit(inference.main([]))
