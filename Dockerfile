# syntax=docker/dockerfile:1
# docker build --target cpu --tag stripseg:cpu .      (or --target cuda); docs/containers.md

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/stripseg/bin:$PATH
RUN useradd --create-home --uid 1000 stripseg && install -d -o stripseg /work

# the dependencies change less often than the code: a layer of their own
FROM base AS cpu-dependencies
COPY requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/stripseg && \
    grep '^torch' /tmp/requirements.txt > /tmp/torch.txt && \
    pip install --requirement /tmp/torch.txt --index-url https://download.pytorch.org/whl/cpu && \
    pip install --requirement /tmp/requirements.txt

FROM base AS cuda-dependencies
COPY requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/stripseg && \
    pip install --requirement /tmp/requirements.txt

FROM base AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-deps --wheel-dir /dist .

FROM cpu-dependencies AS cpu
ARG EXTRAS=export
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install "$(echo /dist/*.whl)[${EXTRAS}]" && \
    stripseg --version
USER 1000
WORKDIR /work
ENTRYPOINT ["stripseg"]
CMD ["--help"]

FROM cuda-dependencies AS cuda
ARG EXTRAS=export
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install "$(echo /dist/*.whl)[${EXTRAS}]" && \
    stripseg --version
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /work
ENTRYPOINT ["stripseg"]
CMD ["--help"]
