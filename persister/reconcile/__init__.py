"""Compares ledger, Redis and counters for `redeem audit`, and finds conflicts."""
