"""`python -m benchmarks`: all measurements, one after the other."""

from __future__ import annotations

from benchmarks import inference, load, training

print("Loading\n")
load.main([])
print("\nInference\n")
inference.main([])
print("\nTraining\n")
training.main()
