"""Webhook endpoints: stores, changes and lists them. ``persister.webhooks`` delivers to them."""
