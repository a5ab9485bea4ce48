"""The parts of scripts/benchmark.py: one module for each sub-benchmark, each with ``add_options`` and ``run``."""
