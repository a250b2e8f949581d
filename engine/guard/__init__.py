"""The guard: decides who may redeem, hold and check codes, without waiting.

Off that path, workers share what sources have tried, through Redis.
"""
