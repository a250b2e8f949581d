"""Reads what happened: redemptions, users, the event feed, conflicts."""
