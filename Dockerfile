# syntax=docker/dockerfile:1
# selfcorrect for a machine with an NVIDIA GPU. torch's wheels bring CUDA's libraries; the driver is the host's, through the
# NVIDIA Container Toolkit. Every package has the version and the digest of requirements-lock.txt.
#
#   docker build -t selfcorrect .
#   docker run --rm --gpus all -v "$PWD:/data" selfcorrect eval --model MODEL --task math --limit 100 --out evals/a
FROM python:3.11-slim-bookworm AS locked
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# libseccomp: the sandbox of the code tasks needs it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libseccomp2 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-lock.txt /tmp/
RUN pip install --require-hashes --requirement /tmp/requirements-lock.txt

# For development (.devcontainer): the same packages and those of the tests, the linters and the site. The checkout is mounted.
FROM locked AS dev
RUN apt-get update \
    && apt-get install --yes --no-install-recommends chromium chromium-driver git make \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-lock-dev.txt /tmp/
RUN pip install --require-hashes --requirement /tmp/requirements-lock-dev.txt \
    && useradd --create-home --uid 1000 dev
USER dev

FROM locked
COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install --no-deps --no-build-isolation /build \
    && rm -r /build \
    && useradd --create-home --uid 1000 selfcorrect \
    && mkdir /data \
    && chown selfcorrect /data
USER selfcorrect
WORKDIR /data
ENTRYPOINT ["selfcorrect"]
CMD ["--help"]
