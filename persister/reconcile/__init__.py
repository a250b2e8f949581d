"""Compares ledger, Redis and counters: the work behind `redeem audit`; finds conflicts."""
