"""Checks of Redis: durability, lost events, memory."""
