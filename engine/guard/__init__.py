"""The guard: decides who may redeem, hold and check codes. It never waits and never asks Redis."""
