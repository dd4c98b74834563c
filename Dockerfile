# pyproxy with the nft that it loads its fixed rules with. Run it in the host's network namespace
# with CAP_NET_ADMIN.
FROM debian:13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
COPY pyproject.toml README.md LICENSE /source/
COPY pyproxy /source/pyproxy
RUN python3 -m venv /opt/pyproxy && /opt/pyproxy/bin/pip install --no-cache-dir /source

FROM debian:13-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nftables python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pyproxy /opt/pyproxy
ENV PATH=/opt/pyproxy/bin:$PATH
ENTRYPOINT ["pyproxy"]
CMD ["run"]
