# syntax=docker/dockerfile:1
# Clocktower for production: PostgreSQL and Redis or Valkey stand elsewhere, see docker-compose.yml.

FROM python:3.13-slim AS build
WORKDIR /build
COPY deploy/build.lock deploy/runtime.lock ./deploy/
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps -r deploy/build.lock \
 && /opt/build/bin/uv venv --no-project /opt/clocktower \
 && /opt/build/bin/uv pip sync --no-cache --python /opt/clocktower --require-hashes --compile-bytecode deploy/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY loadtest ./loadtest
COPY migrations ./migrations
RUN . /opt/build/bin/activate \
 && uv build --wheel --no-build-isolation --offline --out-dir dist \
 && uv pip install --python /opt/clocktower --no-deps --offline --compile-bytecode dist/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/clocktower --create-home clocktower
COPY --from=build /opt/clocktower /opt/clocktower
ENV PATH=/opt/clocktower/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER clocktower
WORKDIR /var/lib/clocktower
EXPOSE 8000
# Alive is enough here: a server whose database is away must not be killed for it, it answers 503 until it is back.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
# serve ends its children in order; a process of its own reaps what others leave behind (`docker run --init`).
STOPSIGNAL SIGTERM
ENTRYPOINT ["clocktower"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--no-migrate"]
