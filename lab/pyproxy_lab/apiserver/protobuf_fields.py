"""The messages of Kubernetes' protobuf form, as far as the server knows them: tables of fields.

Facts: the generated.proto files of k8s.io/api core/v1 and discovery/v1, and of k8s.io/apimachinery
meta/v1 and runtime, of Kubernetes v1.36; and the recorded answers of a kube-apiserver, which show
the fields that Go always writes.
"""

from __future__ import annotations

import enum

import msgspec


class Form(enum.Enum):
    """The type of a field that is no message."""

    TEXT = "string"
    NUMBER = "integer"
    FLAG = "boolean"
    TEXTS = "repeated string"
    MAP = "map of strings"
    BYTES_MAP = "map of bytes"
    INT_OR_STRING = "IntOrString"
    TIME = "Time"
    MICRO_TIME = "MicroTime"
    JSON = "FieldsV1"


class Part(msgspec.Struct, frozen=True):
    """A message: its fields' names in JSON and forms by number, perhaps repeated.

    Go always writes a field, with a zero value if need be. A name that ends with "?" is a pointer,
    which is left out if it is null. Lists and maps are never written empty.
    """

    fields: dict[int, tuple[str, Form | Part]]
    repeated: bool = False


def list_of(part: Part) -> Part:
    """Return the repeated form of a message."""
    return Part(part.fields, repeated=True)


def texts(*names: str) -> Part:
    """Return a message of strings, numbered from 1."""
    return Part({number: (name, Form.TEXT) for number, name in enumerate(names, start=1)})


OWNER = Part(
    {
        1: ("kind", Form.TEXT),
        3: ("name", Form.TEXT),
        4: ("uid", Form.TEXT),
        5: ("apiVersion", Form.TEXT),
        6: ("controller?", Form.FLAG),
        7: ("blockOwnerDeletion?", Form.FLAG),
    }
)
MANAGED = Part(
    {
        1: ("manager", Form.TEXT),
        2: ("operation", Form.TEXT),
        3: ("apiVersion", Form.TEXT),
        4: ("time?", Form.TIME),
        6: ("fieldsType", Form.TEXT),
        7: ("fieldsV1?", Form.JSON),
        8: ("subresource", Form.TEXT),
    }
)
METADATA = Part(
    {
        1: ("name", Form.TEXT),
        2: ("generateName", Form.TEXT),
        3: ("namespace", Form.TEXT),
        4: ("selfLink", Form.TEXT),
        5: ("uid", Form.TEXT),
        6: ("resourceVersion", Form.TEXT),
        7: ("generation", Form.NUMBER),
        8: ("creationTimestamp", Form.TIME),
        9: ("deletionTimestamp?", Form.TIME),
        10: ("deletionGracePeriodSeconds?", Form.NUMBER),
        11: ("labels", Form.MAP),
        12: ("annotations", Form.MAP),
        13: ("ownerReferences", list_of(OWNER)),
        14: ("finalizers", Form.TEXTS),
        17: ("managedFields", list_of(MANAGED)),
    }
)
SERVICE_PORT = Part(
    {
        1: ("name", Form.TEXT),
        2: ("protocol", Form.TEXT),
        3: ("port", Form.NUMBER),
        4: ("targetPort", Form.INT_OR_STRING),
        5: ("nodePort", Form.NUMBER),
        6: ("appProtocol?", Form.TEXT),
    }
)
AFFINITY = Part({1: ("clientIP?", Part({1: ("timeoutSeconds?", Form.NUMBER)}))})
SERVICE_SPEC = Part(
    {
        1: ("ports", list_of(SERVICE_PORT)),
        2: ("selector", Form.MAP),
        3: ("clusterIP", Form.TEXT),
        4: ("type", Form.TEXT),
        5: ("externalIPs", Form.TEXTS),
        7: ("sessionAffinity", Form.TEXT),
        8: ("loadBalancerIP", Form.TEXT),
        9: ("loadBalancerSourceRanges", Form.TEXTS),
        10: ("externalName", Form.TEXT),
        11: ("externalTrafficPolicy", Form.TEXT),
        12: ("healthCheckNodePort", Form.NUMBER),
        13: ("publishNotReadyAddresses", Form.FLAG),
        14: ("sessionAffinityConfig?", AFFINITY),
        17: ("ipFamilyPolicy?", Form.TEXT),
        18: ("clusterIPs", Form.TEXTS),
        19: ("ipFamilies", Form.TEXTS),
        20: ("allocateLoadBalancerNodePorts?", Form.FLAG),
        21: ("loadBalancerClass?", Form.TEXT),
        22: ("internalTrafficPolicy?", Form.TEXT),
        23: ("trafficDistribution?", Form.TEXT),
    }
)
PORT_STATUS = Part({1: ("port", Form.NUMBER), 2: ("protocol", Form.TEXT), 3: ("error?", Form.TEXT)})
INGRESS = Part(
    {
        1: ("ip", Form.TEXT),
        2: ("hostname", Form.TEXT),
        3: ("ipMode?", Form.TEXT),
        4: ("ports", list_of(PORT_STATUS)),
    }
)
CONDITION = Part(
    {
        1: ("type", Form.TEXT),
        2: ("status", Form.TEXT),
        3: ("observedGeneration", Form.NUMBER),
        4: ("lastTransitionTime", Form.TIME),
        5: ("reason", Form.TEXT),
        6: ("message", Form.TEXT),
    }
)
SERVICE_STATUS = Part(
    {
        1: ("loadBalancer", Part({1: ("ingress", list_of(INGRESS))})),
        2: ("conditions", list_of(CONDITION)),
    }
)
SERVICE = Part(
    {1: ("metadata", METADATA), 2: ("spec", SERVICE_SPEC), 3: ("status", SERVICE_STATUS)}
)

OBJECT_REFERENCE = texts(
    "kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"
)
ENDPOINT_CONDITIONS = Part(
    {1: ("ready?", Form.FLAG), 2: ("serving?", Form.FLAG), 3: ("terminating?", Form.FLAG)}
)
HINTS = Part({1: ("forZones", list_of(texts("name"))), 2: ("forNodes", list_of(texts("name")))})
ENDPOINT = Part(
    {
        1: ("addresses", Form.TEXTS),
        2: ("conditions", ENDPOINT_CONDITIONS),
        3: ("hostname?", Form.TEXT),
        4: ("targetRef?", OBJECT_REFERENCE),
        5: ("deprecatedTopology", Form.MAP),
        6: ("nodeName?", Form.TEXT),
        7: ("zone?", Form.TEXT),
        8: ("hints?", HINTS),
    }
)
ENDPOINT_PORT = Part(
    {
        1: ("name?", Form.TEXT),
        2: ("protocol?", Form.TEXT),
        3: ("port?", Form.NUMBER),
        4: ("appProtocol?", Form.TEXT),
    }
)
ENDPOINT_SLICE = Part(
    {
        1: ("metadata", METADATA),
        2: ("endpoints", list_of(ENDPOINT)),
        3: ("ports", list_of(ENDPOINT_PORT)),
        4: ("addressType", Form.TEXT),
    }
)

TAINT = Part(
    {
        1: ("key", Form.TEXT),
        2: ("value", Form.TEXT),
        3: ("effect", Form.TEXT),
        4: ("timeAdded?", Form.TIME),
    }
)
NODE_SPEC = Part(
    {
        1: ("podCIDR", Form.TEXT),
        2: ("externalID", Form.TEXT),
        3: ("providerID", Form.TEXT),
        4: ("unschedulable", Form.FLAG),
        5: ("taints", list_of(TAINT)),
        7: ("podCIDRs", Form.TEXTS),
    }
)
NODE_INFO = texts(
    *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage"),
    *("containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion"),
    *("operatingSystem", "architecture"),
)
# Without resources, conditions and images, which no Service proxy reads.
NODE_STATUS = Part(
    {
        3: ("phase", Form.TEXT),
        5: ("addresses", list_of(texts("type", "address"))),
        6: ("daemonEndpoints", Part({1: ("kubeletEndpoint", Part({1: ("Port", Form.NUMBER)}))})),
        7: ("nodeInfo", NODE_INFO),
    }
)
NODE = Part({1: ("metadata", METADATA), 2: ("spec", NODE_SPEC), 3: ("status", NODE_STATUS)})

LIST_META = Part(
    {
        1: ("selfLink", Form.TEXT),
        2: ("resourceVersion", Form.TEXT),
        3: ("continue", Form.TEXT),
        4: ("remainingItemCount?", Form.NUMBER),
    }
)
STATUS_DETAILS = Part(
    {
        1: ("name", Form.TEXT),
        2: ("group", Form.TEXT),
        3: ("kind", Form.TEXT),
        4: ("causes", list_of(texts("reason", "message", "field"))),
        5: ("retryAfterSeconds", Form.NUMBER),
        6: ("uid", Form.TEXT),
    }
)
STATUS = Part(
    {
        1: ("metadata", LIST_META),
        2: ("status", Form.TEXT),
        3: ("message", Form.TEXT),
        4: ("reason", Form.TEXT),
        5: ("details?", STATUS_DETAILS),
        6: ("code", Form.NUMBER),
    }
)

TYPE_META = texts("apiVersion", "kind")

SENT: dict[str, Part] = {
    "Service": SERVICE,
    "EndpointSlice": ENDPOINT_SLICE,
    "Node": NODE,
    "Status": STATUS,
}
"""The kinds that the server sends in this form; it sends the others as JSON."""
