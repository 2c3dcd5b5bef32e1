# docker build -t monai-nodeo .                                                                            the CPU
# docker build -t monai-nodeo:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .                      NVIDIA GPUs
# docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" monai-nodeo register -f fixed.nii.gz -m moving.nii.gz -o out
# docker run --rm --gpus all ... monai-nodeo:cuda register ...
FROM python:3.12-slim

# Where torch comes from: its builds for the CPU, or the package index, whose builds bring CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt torch
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY monai_nodeo monai_nodeo
COPY bundle bundle
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[all]'

# Any user may run it (docker run -u): what Numba and Triton build and what matplotlib keeps goes to /tmp, and MONAI, which
# asks for the user's name, finds one.
RUN useradd --create-home --uid 1000 nodeo
ENV HOME=/tmp USER=nodeo NUMBA_CACHE_DIR=/tmp/numba TRITON_CACHE_DIR=/tmp/triton MPLCONFIGDIR=/tmp/matplotlib GOMP_SPINCOUNT=300 THP_MEM_ALLOC_ENABLE=1
USER 1000
WORKDIR /data
ENTRYPOINT ["monai-nodeo"]
CMD ["--help"]
