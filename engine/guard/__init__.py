"""The guard: decides who may redeem, hold and check codes, without waiting.

Off that path, workers share what sources have tried, through Redis. Who a caller is, it verifies, too:
signatures, user tokens, addresses behind proxies.
"""
