"""The benchmarks: one module for each, with ``add_options`` and ``run``; ``python -m benchmarks`` runs them."""
