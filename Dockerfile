# pyproxy with the programs that it runs: nft for its fixed rules, iptables for what kube-proxy has
# left, modprobe for kernel modules. It has no shell, no package manager and no compiler. It runs in the
# host's network namespace, as root with CAP_NET_ADMIN and, to take over, CAP_NET_RAW.
#
# The same to the byte wherever it is built, with a SNAPSHOT of Debian's archive, by its time:
#   docker buildx build --build-arg SNAPSHOT=20261101T000000Z --build-arg SOURCE_DATE_EPOCH=0 \
#       --output type=oci,dest=pyproxy.tar,rewrite-timestamp=true .
ARG BASE=debian:13-slim

FROM ${BASE} AS build
ARG SNAPSHOT=
RUN if [ -n "$SNAPSHOT" ]; then \
        sed -i "s#http://deb.debian.org/#http://snapshot.debian.org/archive/#; \
            s#^\(URIs: .*\)/\?\$#\1/$SNAPSHOT/#" /etc/apt/sources.list.d/debian.sources \
        && echo 'Acquire::Check-Valid-Until "false";' >/etc/apt/apt.conf.d/snapshot; \
    fi \
    && apt-get update -q && apt-get install -qq --yes --no-install-recommends python3-venv
COPY deploy/image/debian-packages.txt deploy/image/unpack.sh /source/
RUN /source/unpack.sh /source/debian-packages.txt /image \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /image -p / /image/usr/lib/python3.*
COPY deploy/image/requirements.txt deploy/image/requirements-build.txt /source/
# --no-deps: requirements.txt leaves out what pyproxy never imports.
RUN python3 -m venv /tools \
    && /tools/bin/pip install --quiet --no-cache-dir --no-deps --only-binary :all: \
        --require-hashes -r /source/requirements-build.txt \
    && python3 -m venv --without-pip /opt/pyproxy \
    && /tools/bin/pip --python /opt/pyproxy/bin/python install --quiet --no-cache-dir --no-compile \
        --no-deps --only-binary :all: --require-hashes -r /source/requirements.txt \
    && /opt/pyproxy/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/pyproxy/lib \
    && chmod -R go=u-w /opt/pyproxy
COPY pyproject.toml README.md LICENSE /source/
COPY pyproxy /source/pyproxy
# In a folder of its own, so that a new pyproxy is a layer without the packages that stay the same.
RUN /tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels /source \
    && /tools/bin/pip --python /opt/pyproxy/bin/python install --quiet --no-compile --no-deps --no-index \
        --root /program --prefix /opt/pyproxy /wheels/*.whl \
    && /opt/pyproxy/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        -s /program -p / /program/opt/pyproxy/lib \
    && chmod -R go=u-w /program
COPY deploy/image/sbom.py /source/
# kops' manifest starts kube-proxy with it.
COPY deploy/image/go_runner.py /program/go-runner
# kubeadm's DaemonSet calls /usr/local/bin/kube-proxy.
RUN mkdir -p /program/usr/local/bin /program/usr/share \
    && ln -s /opt/pyproxy/bin/pyproxy /opt/pyproxy/bin/kube-proxy /program/usr/local/bin/ \
    && chmod 0755 /program/go-runner \
    && /tools/bin/python /source/sbom.py /image /opt/pyproxy/lib/python3.*/site-packages \
        /program/opt/pyproxy/lib/python3.*/site-packages >/program/usr/share/sbom.cdx.json

FROM scratch
COPY --from=build /image/ /
COPY --from=build /opt/pyproxy/ /opt/pyproxy/
COPY --from=build /program/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="pyproxy" \
    org.opencontainers.image.description="A Service proxy for Kubernetes nodes, in kube-proxy's place" \
    org.opencontainers.image.licenses="Apache-2.0" \
    sbom.path="/usr/share/sbom.cdx.json" \
    sbom.format="CycloneDX 1.6"
ENTRYPOINT ["pyproxy"]
CMD ["run"]
