# glance-fast serve: docker build -t glance-fast . ; docs/container.md says how to run it.

# Its C code is compiled here, so that the image that runs needs no compiler.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml setup.py README.md LICENSE /src/
COPY glance_fast /src/glance_fast
COPY kernels /src/kernels
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
# PyTorch without CUDA, and without Triton, a gigabyte that only a GPU needs.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[serve]" \
    && pip uninstall -y triton
# What Numba compiles on first use is kept in its user's home.
RUN useradd --create-home --uid 1000 glance
USER glance
EXPOSE 8000
# The thread that scores has ended: 503, which urlopen raises.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["glance-fast"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
