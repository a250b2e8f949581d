"""``python -m engine.cli``: the command without its script."""

from engine.cli import main

main()
