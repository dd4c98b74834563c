# pyproxy with the programs that it runs: nft for its fixed rules, iptables for what kube-proxy has
# left, modprobe for the module nf_conntrack. It runs in the host's network namespace, as root with
# CAP_NET_ADMIN and, to take over, CAP_NET_RAW.
#
# The same to the byte wherever it is built, with a SNAPSHOT of Debian's archive, by its time:
#   docker buildx build --build-arg SNAPSHOT=20261101T000000Z --build-arg SOURCE_DATE_EPOCH=0 \
#       --output type=oci,dest=pyproxy.tar,rewrite-timestamp=true .
ARG BASE=debian:13-slim

FROM ${BASE} AS debian
ARG SNAPSHOT=
RUN if [ -n "$SNAPSHOT" ]; then \
        sed -i "s#http://deb.debian.org/#http://snapshot.debian.org/archive/#; \
            s#^\(URIs: .*\)/\?\$#\1/$SNAPSHOT/#" /etc/apt/sources.list.d/debian.sources \
        && echo 'Acquire::Check-Valid-Until "false";' >/etc/apt/apt.conf.d/snapshot; \
    fi

FROM debian AS build
RUN apt-get update -q && apt-get install -qq --yes --no-install-recommends python3-venv
COPY deploy/image/requirements.txt /source/
RUN python3 -m venv /opt/pyproxy \
    && /opt/pyproxy/bin/pip install --quiet --no-cache-dir --no-compile --only-binary :all: \
        --require-hashes -r /source/requirements.txt
COPY pyproject.toml README.md LICENSE /source/
COPY pyproxy /source/pyproxy
RUN cd /opt/pyproxy \
    && bin/pip install --quiet --no-cache-dir --no-compile --no-deps --no-build-isolation /source \
    && bin/pip uninstall --quiet --yes setuptools pip \
    && find . -name __pycache__ -prune -exec rm -rf {} + \
    && bin/python -m compileall -q --invalidation-mode unchecked-hash lib \
    && chmod -R go=u-w .

FROM debian
RUN apt-get update -q \
    && apt-get install -qq --yes --no-install-recommends iptables kmod nftables python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /opt/pyproxy /opt/pyproxy
COPY deploy/image/sbom.py /tmp/
# kops' manifest starts kube-proxy with it.
COPY deploy/image/go_runner.py /go-runner
# kubeadm's DaemonSet calls /usr/local/bin/kube-proxy.
RUN ln -s /opt/pyproxy/bin/pyproxy /opt/pyproxy/bin/kube-proxy /usr/local/bin/ \
    && chmod 0755 /go-runner \
    && /opt/pyproxy/bin/python /tmp/sbom.py >/usr/share/sbom.cdx.json \
    && rm /tmp/sbom.py
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="pyproxy" \
    org.opencontainers.image.description="A Service proxy for Kubernetes nodes, in kube-proxy's place" \
    org.opencontainers.image.licenses="Apache-2.0" \
    sbom.path="/usr/share/sbom.cdx.json" \
    sbom.format="CycloneDX 1.5"
ENTRYPOINT ["pyproxy"]
CMD ["run"]
