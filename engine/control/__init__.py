"""The control plane: changes the configuration in PostgreSQL and publishes it to Redis.

The configuration is campaigns, batches, API keys and voids. The audit log is here, too.
"""
