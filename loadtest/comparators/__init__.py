"""The engine beside what others would build: ``make bench-peers``, or ``python -m loadtest.comparators``."""
