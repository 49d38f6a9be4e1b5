# The operator, without the development cluster: docker build -t vnode:0.1.0 .

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
ENV CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0

# Dependencies first, against empty sources: this layer is built again only when a manifest or the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY src/devcluster/Cargo.toml src/devcluster/
COPY src/kubelet/stream/spdy/Cargo.toml src/kubelet/stream/spdy/
RUN mkdir -p e2e src/devcluster/examples src/devcluster/tests src/devcluster/benches \
 && for file in src/main.rs e2e/main.rs e2e/fleet_bench.rs \
      src/devcluster/examples/serve.rs src/devcluster/tests/api.rs src/devcluster/benches/cluster.rs; do \
      printf '//! Empty.\nfn main() {}\n' > "$file"; \
    done \
 && for file in src/lib.rs src/devcluster/lib.rs src/kubelet/stream/spdy/lib.rs; do \
      printf '//! Empty.\n' > "$file"; \
    done \
 && cargo build --release --locked --no-default-features --bin vnode

# The sources are older than what was just built from the empty ones; cargo goes by the time.
COPY src src
RUN find src -name '*.rs' -exec touch {} + \
 && cargo build --release --locked --no-default-features --bin vnode \
 && target/release/vnode version

FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="vnode" \
      org.opencontainers.image.description="Fleets of virtual Kubernetes nodes from one custom resource" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY LICENSE /LICENSE
COPY --from=build /src/target/release/vnode /vnode
USER 65532:65532
# Metrics and health.
EXPOSE 8080
ENTRYPOINT ["/vnode"]
CMD ["operator"]
