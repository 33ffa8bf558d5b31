# Stands in for grafana/grafana, which is in no registry of packages: dashboards.py answers at Grafana's port, reads
# what Grafana would read, and says what is wrong with it.
FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-minimal python3-yaml \
 && rm -rf /var/lib/apt/lists/*
COPY dashboards.py /usr/share/grafana/dashboards.py
USER 472
WORKDIR /usr/share/grafana
EXPOSE 3000
LABEL org.myelin.standin=1
ENTRYPOINT ["python3", "/usr/share/grafana/dashboards.py"]
CMD ["serve"]
