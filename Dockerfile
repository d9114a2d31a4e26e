# syntax=docker/dockerfile:1
#
# The image of the sidecar: one binary, the C library that it needs, certificates; no shell, not root.
#
#   docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" --build-arg CREATED="$(git log -1 --format=%cI)" \
#       --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)" -t license-proxy .
#
# docs/release.md says how a release is made of it, and how to see that the binary is what the commit says.

ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /source
# What the build needs, and nothing whose change would not change the binary.
COPY Cargo.toml Cargo.lock build.rs ./
COPY crates crates
COPY migrations migrations
COPY config/embedded.yaml config/licenses.yaml config/
COPY scripts/build-dist scripts/build-dist
COPY src src
ARG COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    test -n "${COMMIT}" || { echo "give --build-arg COMMIT: the image says what it was built from" >&2; exit 1; }; \
    DOTMAC_LICENSE_BUILD_COMMIT="${COMMIT}" scripts/build-dist \
    && install -D target/dist/dotmac-license-proxy /image/usr/local/bin/dotmac-license-proxy

FROM ${BASE_IMAGE}
ARG COMMIT
ARG CREATED
ARG VERSION
LABEL org.opencontainers.image.title="dotmac-license-proxy" \
      org.opencontainers.image.description="A licence-enforcing reverse proxy that runs beside a multi-tenant backend." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/dotmac/dotmac-license-proxy" \
      org.opencontainers.image.documentation="https://github.com/dotmac/dotmac-license-proxy/blob/main/README.md" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /image/ /
# By number, so that `runAsNonRoot` can be checked without reading the image's /etc/passwd.
USER 65532:65532
ENV DOTMAC_LICENSE_CONFIG=/etc/dotmac-license-proxy/config.yaml
# 8080: requests. 9464: /livez, /readyz, /metrics. The admin API listens on loopback.
EXPOSE 8080 9464
ENTRYPOINT ["/usr/local/bin/dotmac-license-proxy"]
CMD ["serve"]
