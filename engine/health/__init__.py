"""Checks of Redis: durability, lost events, memory. What the other processes look like from outside."""
