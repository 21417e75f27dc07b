# The GPU client: the edge client with torch, which trains on CUDA where a GPU is given to it.
#
#   docker build -f docker/client-gpu.Dockerfile -t headwater-client-gpu .
#   docker run --gpus all ... headwater-client-gpu run --trainer torch --device cuda ...
#
# torch's Linux x86_64 wheels bring CUDA's libraries; the host gives the driver through NVIDIA's
# container toolkit. For another CUDA than torch's default: --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
ARG EXTRAS=torch,parquet,images
ARG PIP_EXTRA_INDEX_URL
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_NO_CACHE_DIR=1
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/headwater \
 && pip --python /opt/headwater/bin/python install --no-cache-dir \
        "$(echo /wheels/headwater-*.whl)${EXTRAS:+[$EXTRAS]}"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 headwater \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/headwater-client --shell /usr/sbin/nologin headwater \
 && install -d -o headwater -g headwater -m 0750 /var/lib/headwater-client
COPY --from=build /opt/headwater /opt/headwater
COPY docker/client_health.py /opt/headwater/health.py
ENV PATH=/opt/headwater/bin:$PATH \
    XDG_STATE_HOME=/var/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/headwater-client
VOLUME /var/lib/headwater-client
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "/opt/headwater/health.py"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Headwater GPU client" \
      org.opencontainers.image.description="Trains models on this device's data, which never leave it" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["headwater-client"]
CMD ["run", "--help"]
