"""The messages that kubectl and kube-proxy send in protobuf, as far as they fill them in.

`kubectl create` sends Deployments, ConfigMaps, Secrets and ServiceAccounts in this form, kube-proxy
Events. Other fields are not read. Facts: the generated.proto files of k8s.io/api core/v1, apps/v1
and events/v1, of Kubernetes v1.36.
"""

from __future__ import annotations

from pyproxy_lab.apiserver.protobuf_fields import (
    METADATA,
    SERVICE_SPEC,
    Form,
    Part,
    list_of,
    texts,
)

SELECTOR = Part(
    {
        1: ("matchLabels", Form.MAP),
        2: (
            "matchExpressions",
            list_of(
                Part(
                    {
                        1: ("key", Form.TEXT),
                        2: ("operator", Form.TEXT),
                        3: ("values", Form.TEXTS),
                    }
                )
            ),
        ),
    }
)
CONTAINER_PORT = Part(
    {
        1: ("name", Form.TEXT),
        2: ("hostPort", Form.NUMBER),
        3: ("containerPort", Form.NUMBER),
        4: ("protocol", Form.TEXT),
        5: ("hostIP", Form.TEXT),
    }
)
CONTAINER = Part(
    {
        1: ("name", Form.TEXT),
        2: ("image", Form.TEXT),
        3: ("command", Form.TEXTS),
        4: ("args", Form.TEXTS),
        5: ("workingDir", Form.TEXT),
        6: ("ports", list_of(CONTAINER_PORT)),
        7: ("env", list_of(texts("name", "value"))),
        14: ("imagePullPolicy", Form.TEXT),
        16: ("stdin", Form.FLAG),
        17: ("stdinOnce", Form.FLAG),
        18: ("tty", Form.FLAG),
    }
)
POD_SPEC = Part(
    {
        2: ("containers", list_of(CONTAINER)),
        3: ("restartPolicy", Form.TEXT),
        4: ("terminationGracePeriodSeconds?", Form.NUMBER),
        6: ("dnsPolicy", Form.TEXT),
        7: ("nodeSelector", Form.MAP),
        8: ("serviceAccountName", Form.TEXT),
        10: ("nodeName", Form.TEXT),
        11: ("hostNetwork", Form.FLAG),
    }
)
TEMPLATE = Part({1: ("metadata", METADATA), 2: ("spec", POD_SPEC)})
ROLLING = Part({1: ("maxUnavailable?", Form.INT_OR_STRING), 2: ("maxSurge?", Form.INT_OR_STRING)})
DEPLOYMENT_SPEC = Part(
    {
        1: ("replicas?", Form.NUMBER),
        2: ("selector?", SELECTOR),
        3: ("template", TEMPLATE),
        4: ("strategy", Part({1: ("type", Form.TEXT), 2: ("rollingUpdate?", ROLLING)})),
        5: ("minReadySeconds", Form.NUMBER),
        6: ("revisionHistoryLimit?", Form.NUMBER),
        7: ("paused", Form.FLAG),
        9: ("progressDeadlineSeconds?", Form.NUMBER),
    }
)

EVENT = Part(
    {
        1: ("metadata", METADATA),
        2: ("eventTime", Form.MICRO_TIME),
        4: ("reportingController", Form.TEXT),
        5: ("reportingInstance", Form.TEXT),
        6: ("action", Form.TEXT),
        7: ("reason", Form.TEXT),
        8: (
            "regarding",
            texts("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"),
        ),
        10: ("note", Form.TEXT),
        11: ("type", Form.TEXT),
    }
)
"""That of events.k8s.io/v1; kubectl creates none of core/v1."""

RECEIVED: dict[str, Part] = {
    "Namespace": Part({1: ("metadata", METADATA)}),
    "Service": Part({1: ("metadata", METADATA), 2: ("spec", SERVICE_SPEC)}),
    "Deployment": Part({1: ("metadata", METADATA), 2: ("spec", DEPLOYMENT_SPEC)}),
    "ConfigMap": Part(
        {
            1: ("metadata", METADATA),
            2: ("data", Form.MAP),
            3: ("binaryData", Form.BYTES_MAP),
            4: ("immutable?", Form.FLAG),
        }
    ),
    "Secret": Part(
        {
            1: ("metadata", METADATA),
            2: ("data", Form.BYTES_MAP),
            3: ("type", Form.TEXT),
            4: ("stringData", Form.MAP),
            5: ("immutable?", Form.FLAG),
        }
    ),
    "ServiceAccount": Part({1: ("metadata", METADATA)}),
    "Event": EVENT,
}
"""The kinds that the server receives in this form."""
