"""The scripts that decide, one a file, and the loader that composes them."""
