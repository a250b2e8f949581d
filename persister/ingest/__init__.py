"""Streams into the ledger: one owner per shard, COPY and offset in one transaction, then trimming."""
