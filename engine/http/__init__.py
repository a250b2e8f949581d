"""HTTP over aiohttp: routes with their scopes, authentication, problems, monitoring."""
