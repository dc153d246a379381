# A server for one model, on CPUs. The model is not part of the image:
#
#   docker build -t adaexit-serve .
#   docker run --rm --user "$(id -u)" -p 8080:8080 -v "$PWD/out:/model:ro" adaexit-serve
#   docker run --rm --user "$(id -u)" -p 8080:8080 -v "$PWD/out:/model:ro" --cpus 2 adaexit-serve /model --threads 2
#
# --user, since weights can be read by their owner only. What follows the name of the image replaces /model: the
# checkpoint and flags of `adaexit serve`. A container sees all cores of its machine: with --cpus N pass --threads N,
# too. For the exported model build with --build-arg EXTRAS=serve,onnx and run with /model --runtime onnx.

FROM python:3.11-slim

# PyPI's torch for Linux brings CUDA along; another index, or none, with --build-arg PIP_OPTIONS=...
ARG PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
ARG EXTRAS=serve

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY adaexit_hf ./adaexit_hf
RUN pip install --no-cache-dir $PIP_OPTIONS -c constraints.txt ".[$EXTRAS]"

# Any user may run it; a model from the Hub is downloaded into a folder that all may write to.
ENV HF_HOME=/tmp/huggingface HOME=/tmp
USER nobody
WORKDIR /tmp

EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["adaexit", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["/model"]
