"""The sections of `benchmarks.device_check`."""
