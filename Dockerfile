# syntax=docker/dockerfile:1
# The operator, without the development cluster:
#
#   docker build -t vnode:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=mode=max -t REGISTRY/vnode:0.1.0 .
#
# Each platform is built on itself: the release workflow has a machine of each, elsewhere buildx emulates. The program
# needs only libc (no OpenSSL: rustls with ring), so it lies in a distroless image: no shell, no package manager, CA
# certificates, and a user that is not root.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# Paths of the build machine and times stay out of the program: the same sources give the same bytes.
ENV CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0 \
    RUSTFLAGS="--remap-path-prefix=/src=vnode --remap-path-prefix=/usr/local/cargo/registry/src=deps -C strip=symbols"

# Dependencies first, against empty sources: this layer is built again only when a manifest or the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY examples/custom-provider/Cargo.toml examples/custom-provider/
COPY src/devcluster/Cargo.toml src/devcluster/
COPY src/kubelet/stream/spdy/Cargo.toml src/kubelet/stream/spdy/
COPY proto/Cargo.toml proto/
COPY proto/gen/Cargo.toml proto/gen/
COPY examples/grpc-rust/Cargo.toml examples/grpc-rust/
COPY .ci/image-build /usr/local/bin/image-build
RUN image-build stubs && image-build compile

# The sources are older than what was just built from the empty ones; cargo goes by the time.
COPY src src
COPY proto proto
RUN find src proto -name '*.rs' -exec touch {} + && image-build compile && image-build check

FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="vnode" \
      org.opencontainers.image.description="Fleets of virtual Kubernetes nodes from one custom resource" \
      org.opencontainers.image.source="https://github.com/vnode-dev/vnode" \
      org.opencontainers.image.documentation="https://github.com/vnode-dev/vnode/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /LICENSE
COPY --from=build /out/vnode /vnode
# What the program was built from, for scanners that read no lock file out of a binary.
COPY Cargo.lock /usr/share/doc/vnode/Cargo.lock
USER 65532:65532
# Metrics and health.
EXPOSE 8080
ENTRYPOINT ["/vnode"]
CMD ["operator"]
