"""Webhook endpoints: what is configured, how it changes, which addresses are allowed."""
