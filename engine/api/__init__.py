"""Request bodies, problem documents and headers. Knows no aiohttp."""
