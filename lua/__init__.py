"""The Lua scripts, one operation per file, and the loader that composes them."""
