# Stands in for coturn/coturn: Debian's coturn.
FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends coturn \
 && rm -rf /var/lib/apt/lists/*
LABEL org.myelin.standin=1
ENTRYPOINT ["turnserver"]
