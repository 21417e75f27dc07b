# The coordinator: gRPC services, round engine, database. Without torch.
#
#   docker build -f docker/coordinator.Dockerfile -t headwater-coordinator .
#
# EXTRAS adds what reads other held-out data than .npz and .csv: coordinator,parquet,images
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
ARG EXTRAS=coordinator
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
        --home-dir /var/lib/headwater --shell /usr/sbin/nologin headwater \
 && install -d -o headwater -g headwater -m 0750 /var/lib/headwater
COPY --from=build /opt/headwater /opt/headwater
COPY docker/coordinator_health.py /opt/headwater/health.py
ENV PATH=/opt/headwater/bin:$PATH \
    HEADWATER_DATA_DIRECTORY=/var/lib/headwater
USER 10001:10001
WORKDIR /var/lib/headwater
VOLUME /var/lib/headwater
EXPOSE 7070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "/opt/headwater/health.py"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Headwater coordinator" \
      org.opencontainers.image.description="Federated rounds over clients, every round in a database" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["headwater"]
CMD ["serve"]
