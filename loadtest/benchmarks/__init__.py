"""Benchmarks, and the testbed they run on. Not part of the wheel."""
