"""Attempts on codes: each operation, the core that sends them, flows over several codes."""
