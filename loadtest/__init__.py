"""Load: benchmarks beside baselines, and the scenarios that prove the capacity before a sale."""
