"""Request bodies, outcomes, problem documents and response headers. Does not import aiohttp."""
