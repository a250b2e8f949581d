"""Builds the compiled modules. All else about the distribution is in pyproject.toml.

Without a compiler or Python.h they are left out: plain redemptions run in the python lane, numpy decrypts
codes, Python counts what sources try, the persister decodes events, and a rebuild makes all its records.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = {
    "engine.codes._ff1": Path("engine/codes/_ff1.pyx"),
    "engine.guard._limits": Path("engine/guard/_limits.pyx"),
    "engine.lane._express": Path("engine/lane/_express.pyx"),
    "persister.ingest._packed_rows": Path("persister/ingest/_packed_rows.pyx"),
    "persister.rebuild._plain_records": Path("persister/rebuild/_plain_records.pyx"),
}


def extensions() -> list[Extension]:
    """Return the compiled modules; none if their sources cannot be turned into C here."""
    try:
        from Cython.Build import cythonize  # noqa: PLC0415 - it may be missing
    except ImportError:  # from the source distribution, which has the generated C
        generated = {name: source.with_suffix(".c") for name, source in SOURCES.items()}
        return [Extension(name, [str(c)], optional=True) for name, c in generated.items() if c.exists()]
    sources = [Extension(name, [str(source)]) for name, source in SOURCES.items()]
    made: list[Extension] = cythonize(sources, quiet=True, force=True)
    for one in made:
        one.optional = True  # cythonize() does not keep it
    return made


setup(ext_modules=extensions())
