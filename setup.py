"""Builds the express lane. All else about the distribution is in pyproject.toml.

Without a compiler or Python.h it is left out, and plain redemptions run in the python lane.
"""

from pathlib import Path

from setuptools import Extension, setup

NAME = "engine.lane._express"
SOURCE = Path("engine/lane/_express.pyx")


def extensions() -> list[Extension]:
    """Return the express lane; none if its source cannot be turned into C here."""
    try:
        from Cython.Build import cythonize  # noqa: PLC0415 - it may be missing
    except ImportError:  # from the source distribution, which has the generated C
        generated = SOURCE.with_suffix(".c")
        return [Extension(NAME, [str(generated)], optional=True)] if generated.exists() else []
    made: list[Extension] = cythonize([Extension(NAME, [str(SOURCE)])], quiet=True, force=True)
    for one in made:
        one.optional = True  # cythonize() does not keep it
    return made


setup(ext_modules=extensions())
