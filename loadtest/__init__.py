"""Benchmarks against baselines, and load tests that measure the capacity before a sale."""
