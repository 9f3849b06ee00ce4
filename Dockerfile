# smd-hf: docker build -t smd-hf . && docker run --rm smd-hf demo --output_dir /tmp/demo
# Your images and results: docker run --rm -v "$PWD:/work" smd-hf evolve --model_name_or_path MODEL --train_dir photos/train ...
FROM python:3.13-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY smd_hf ./smd_hf
# The package itself, from this folder: there is no version to pin.
# hadolint ignore=DL3013
RUN pip install ".[pareto,openvino]" \
    && useradd --create-home --uid 1000 user \
    && mkdir /cache /work \
    && chown user:user /cache /work

USER 1000
WORKDIR /work
VOLUME ["/cache", "/work"]
ENTRYPOINT ["smd-hf"]
CMD ["--help"]
