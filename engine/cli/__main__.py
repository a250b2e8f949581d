"""``python -m engine.cli``: runs the command ``redeem`` without its installed script."""

from engine.cli import main

main()
