# Stands in for rust:1.95-bookworm where the way to the binary is looked at and not the binary: compiler-cargo.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils \
 && rm -rf /var/lib/apt/lists/*
COPY compiler-cargo /usr/local/bin/cargo
LABEL org.myelin.standin=1
