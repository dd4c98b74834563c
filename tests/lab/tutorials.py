"""Commands of tutorials about Services, as people type them.

Each step is a shell command and a regular expression that its output matches, sooner or later for
a step with `eventually` and for commands that only read. `node` and `outside` run a program on the
first node and on the outside client. Each tutorial has a namespace of its own.
"""

from __future__ import annotations

from typing import NamedTuple

NODE = "172.30.0.11"


class Step(NamedTuple):
    """`command` ends with status 0, or not with 0 if it is `refused`."""

    command: str
    expected: str = ""
    refused: bool = False
    eventually: bool = False


def refused(command: str, expected: str) -> Step:
    return Step(command, expected, refused=True)


def eventually(command: str, expected: str) -> Step:
    return Step(command, expected, eventually=True)


def apply(*manifests: str) -> Step:
    joined = "\n---\n".join(manifests)
    return Step(f"kubectl apply -f - <<'END'\n{joined}\nEND", "created|configured")


def deployment(name: str, image: str, labels: str, replicas: int = 2, port: int = 80) -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{{labels}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{{labels}}}}}
  template:
    metadata: {{labels: {{{labels}}}}}
    spec: {{containers: [{{name: {name}, image: "{image}", ports: [{{containerPort: {port}}}]}}]}}
"""


def service(name: str, selector: str, port: int = 80, spec: str = "") -> str:
    extra = f", {spec}" if spec else ""
    ports = f"ports: [{{port: {port}}}]"
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{{selector}}}, {ports}{extra}}}
"""


def jsonpath(what: str, path: str) -> str:
    return f"$(kubectl get {what} -o jsonpath='{{{path}}}')"


def client(name: str, command: str) -> str:
    return f"kubectl run {name} -i --rm --restart=Never --image=busybox -- {command}"


WEB = "kubectl create deployment web --image=nginx:1.25 --replicas=2 --port=80"
READY = "kubectl rollout status deployment/web --timeout=60s"
TUTORIALS: dict[str, list[Step]] = {
    "expose-your-app": [
        Step("kubectl create deployment bootcamp --image=example.com/kubernetes-bootcamp:v1"),
        Step("kubectl rollout status deployment/bootcamp --timeout=60s", "successfully"),
        Step("kubectl expose deployment/bootcamp --type=NodePort --port=8080", "exposed"),
        Step("kubectl describe services/bootcamp", "NodePort: +<unset> +3"),
        eventually(
            f"node curl -s {NODE}:{jsonpath('svc bootcamp', '.spec.ports[0].nodePort')}",
            "Version: v1",
        ),
        Step("kubectl label pods -l app=bootcamp version=v1", "labeled"),
        Step("kubectl get pods -l version=v1", "Running"),
        Step("kubectl exec -ti deploy/bootcamp -- curl -s http://localhost:8080", "Hostname"),
        Step("kubectl delete service -l app=bootcamp", "deleted"),
        Step("kubectl get services", "No resources"),
    ],
    "scale-your-app": [
        Step("kubectl create deployment bootcamp --image=example.com/kubernetes-bootcamp:v1"),
        Step("kubectl scale deployments/bootcamp --replicas=4", "scaled"),
        Step("kubectl rollout status deployment/bootcamp --timeout=60s"),
        Step("kubectl get rs", "4 +4 +4"),
        Step("kubectl describe deployments/bootcamp", "ScalingReplicaSet"),
        Step("kubectl scale deployments/bootcamp --replicas=2", "scaled"),
        eventually("kubectl get deployments", "bootcamp +2/2 +2 +2"),
    ],
    "update-your-app": [
        Step(WEB),
        Step(READY),
        Step("kubectl annotate deployment/web kubernetes.io/change-cause='to 1.26'"),
        Step("kubectl set image deployments/web nginx=nginx:1.26", "image updated"),
        Step(READY, "successfully"),
        Step("kubectl rollout history deployment/web", "2 +to 1.26"),
        Step("kubectl set image deployments/web nginx=nginx:1.27"),
        Step("kubectl rollout undo deployments/web", "rolled back"),
        Step(READY, "successfully"),
        Step("kubectl get pods -l app=web -o jsonpath='{..image}'", "nginx:1.26"),
        Step("kubectl rollout restart deployment/web", "restarted"),
        Step(READY, "successfully"),
    ],
    "connect-applications": [
        apply(deployment("my-nginx", "nginx", "run: my-nginx")),
        Step("kubectl rollout status deployment/my-nginx --timeout=60s"),
        Step("kubectl get pods -l run=my-nginx -o wide", r"10\.244\."),
        Step("kubectl expose deployment/my-nginx", "exposed"),
        Step("kubectl describe svc my-nginx", r"Endpoints: +10\.244\..*:80"),
        eventually("kubectl get endpointslices -l kubernetes.io/service-name=my-nginx", "IPv4 +80"),
        Step("kubectl get ep my-nginx", r"10\.244\..*:80,10\.244\..*:80"),
        eventually("kubectl exec deploy/my-nginx -- getent hosts my-nginx", r"10\.\d+.*my-nginx"),
        eventually("kubectl exec deploy/my-nginx -- curl -s my-nginx", "Hostname: my-nginx"),
    ],
    "debug-services": [
        Step("kubectl create deployment hostnames --image=example.com/serve_hostname"),
        Step("kubectl scale deployment hostnames --replicas=3"),
        Step("kubectl rollout status deployment/hostnames --timeout=60s"),
        Step(
            "kubectl get pods -l app=hostnames -o go-template="
            "'{{range .items}}{{.status.podIP}}{{\"\\n\"}}{{end}}'",
            r"10\.244\.",
        ),
        refused("kubectl get svc hostnames", "NotFound"),
        Step("kubectl expose deployment hostnames --port=80 --target-port=9376"),
        eventually(
            "kubectl get endpointslices -l kubernetes.io/service-name=hostnames", "IPv4 +9376"
        ),
        eventually(client("probe", "wget -qO- hostnames/hostname"), "^hostnames-"),
        Step("kubectl get service hostnames -o json", '"targetPort": 9376'),
        Step("kubectl set selector service hostnames 'app=hostname'", "selector updated"),
        eventually("kubectl get endpoints hostnames", "<none>"),
        Step('kubectl patch svc hostnames -p \'{"spec":{"selector":{"app":"hostnames"}}}\''),
        eventually("kubectl get endpoints hostnames", r"10\.244\..*:9376"),
    ],
    "guestbook": [
        apply(
            deployment("redis-leader", "redis:6", "app: redis, role: leader", 1, 6379),
            service("redis-leader", "app: redis, role: leader", 6379),
            deployment("frontend", "gb-frontend:v5", "app: guestbook, tier: frontend"),
            service("frontend", "app: guestbook, tier: frontend"),
        ),
        Step("kubectl rollout status deployment/frontend --timeout=60s"),
        Step("kubectl get pods -l app=guestbook -l tier=frontend", "Running"),
        Step("kubectl logs deployment/redis-leader", "serving on 6379"),
        Step("kubectl scale deployment frontend --replicas=3"),
        Step("kubectl get pods,service", "service/frontend"),
        Step("kubectl delete deployment,service -l app=guestbook", "deleted|No resources"),
    ],
    "blue-green": [
        apply(
            deployment("blue", "web:1", "app: web, version: blue"),
            deployment("green", "web:2", "app: web, version: green"),
            service("web", "app: web, version: blue"),
        ),
        Step("kubectl wait deployment --all --for=condition=Available --timeout=60s", "met"),
        eventually("kubectl exec deploy/blue -- curl -s web/version", "^1$"),
        Step("kubectl set selector svc web 'app=web,version=green'"),
        eventually("kubectl exec deploy/blue -- curl -s web/version", "^2$"),
        Step("kubectl get svc web -o wide", "version=green"),
    ],
    "statefulset-basics": [
        apply(
            service("nginx", "app: nginx", spec="clusterIP: None"),
            """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: nginx
  replicas: 2
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec: {containers: [{name: nginx, image: "nginx:0.8", ports: [{containerPort: 80}]}]}
""",
        ),
        Step("kubectl rollout status sts/web --timeout=60s", "complete"),
        Step("for i in 0 1; do kubectl exec web-$i -- sh -c hostname; done", "web-0\nweb-1"),
        eventually(client("dns-test", "getent hosts web-1.nginx"), r"10\.244\..*web-1"),
        Step("kubectl delete pod -l app=nginx --grace-period=1", '"web-0" deleted'),
        Step("kubectl rollout status sts/web --timeout=60s"),
        Step("kubectl scale sts web --replicas=3", "scaled"),
        eventually("kubectl get sts web", "web +3/3"),
        Step('kubectl patch sts web -p \'{"spec":{"replicas":2}}\'', "patched"),
        eventually("kubectl get sts web", "web +2/2"),
        Step("kubectl delete statefulset web --cascade=orphan", "deleted"),
        Step("kubectl get pods -l app=nginx", "web-0 .*Running"),
    ],
    "source-ip": [
        Step("kubectl create deployment source-ip-app --image=example.com/echoserver:1.10"),
        Step("kubectl rollout status deployment/source-ip-app --timeout=60s"),
        Step(
            "kubectl expose deployment source-ip-app --name=clusterip --port=80 --target-port=8080"
        ),
        eventually(client("c", "wget -qO- clusterip"), r"Client: 10\.244\."),
        Step(
            "kubectl expose deployment source-ip-app --name=lb --port=80 --target-port=8080 "
            "--type=LoadBalancer"
        ),
        eventually("kubectl get svc lb", r"192\.0\.2\."),
        Step('kubectl patch svc lb -p \'{"spec":{"externalTrafficPolicy":"Local"}}\''),
        Step("kubectl get svc lb -o yaml", "healthCheckNodePort: 3"),
        Step("kubectl scale deployment source-ip-app --replicas=4"),
        eventually(
            f"outside curl -s {jsonpath('svc lb', '.status.loadBalancer.ingress[0].ip')}",
            r"Client: 172\.30\.0\.100",
        ),
    ],
    "external-name": [
        Step("kubectl create service externalname my-db --external-name=db.example.com"),
        Step("kubectl get svc my-db", "ExternalName +<none> +db.example.com"),
        Step("kubectl describe svc my-db", "External Name: +db.example.com"),
    ],
    "hello-minikube": [
        Step(
            "kubectl create deployment hello-node --image=example.com/agnhost:2.53 -- "
            "/agnhost netexec --http-port=8080"
        ),
        Step("kubectl rollout status deployment/hello-node --timeout=60s"),
        Step("kubectl get deployments", "hello-node +1/1"),
        Step("kubectl get events", "Created pod: hello-node"),
        Step("kubectl config view", "current-context"),
        Step("kubectl logs deploy/hello-node", "serving on 8080"),
        Step("kubectl expose deployment hello-node --type=LoadBalancer --port=8080"),
        eventually("kubectl get services", r"LoadBalancer +\S+ +192\.0\.2\."),
        Step("kubectl delete service,deployment hello-node", "deleted"),
    ],
    "external-ip": [
        apply(deployment("hello-world", "hello-app:2.0", "app: lb-example", 3, 8080)),
        Step("kubectl rollout status deployment/hello-world --timeout=60s"),
        Step("kubectl get replicasets", "3 +3 +3"),
        Step("kubectl describe replicasets", "Replicas: +3 current / 3 desired"),
        Step("kubectl expose deployment hello-world --type=LoadBalancer --name=my-service"),
        eventually("kubectl describe services my-service", r"LoadBalancer Ingress: +192\.0\.2\."),
        eventually(
            f"outside curl -s {jsonpath('svc my-service', '.status.loadBalancer.ingress[0].ip')}"
            ":8080",
            "Version: 2.0",
        ),
    ],
    "readiness": [
        Step(WEB),
        Step("kubectl expose deployment web --port=80"),
        Step(READY),
        Step("kubectl annotate pod -l app=web pyproxy-lab/ready=false", "annotated"),
        eventually("kubectl get endpoints web", "<none>"),
        Step("kubectl get pods -l app=web", "0/1 +Running"),
        Step("kubectl annotate pod -l app=web pyproxy-lab/ready-"),
        Step("kubectl wait pod -l app=web --for=condition=Ready --timeout=60s", "met"),
        Step("kubectl annotate pod -l app=web pyproxy-lab/live=false --overwrite"),
        eventually("kubectl get pods -l app=web", "Running|CrashLoopBackOff"),
        eventually("kubectl get events", "liveness probe"),
    ],
    "service-without-selector": [
        apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {ports: [{port: 80}]}",
            """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: "", port: 9090}]
endpoints: [{addresses: [172.30.0.12]}]
""",
        ),
        Step("kubectl describe svc db", r"Endpoints: +172\.30\.0\.12:9090"),
        Step("kubectl get endpointslice db-1", "9090"),
    ],
    "daemonset": [
        apply(
            deployment("agent", "fluentd:1", "app: agent")
            .replace("Deployment", "DaemonSet")
            .replace("  replicas: 2\n", "")
        ),
        Step("kubectl rollout status ds/agent --timeout=60s", "successfully"),
        Step("kubectl get ds agent", "2 +2 +2"),
        Step("kubectl set image ds/agent agent=fluentd:2"),
        Step("kubectl rollout status ds/agent --timeout=60s", "successfully"),
        Step("kubectl rollout undo ds/agent", "rolled back"),
        Step("kubectl describe ds agent", "SuccessfulCreate"),
    ],
    "pods-alone": [
        Step("kubectl run web --image=nginx:1.25 --port=80 --expose", "pod/web created"),
        Step("kubectl wait pod web --for=condition=Ready --timeout=60s"),
        eventually(client("c", "wget -qO- web"), "Version: 1.25"),
        Step("kubectl exec web -- sh -c 'exit 0'"),
        refused("kubectl exec web -- sh -c 'exit 3'", "exit code 3"),
        Step("kubectl cp --help"),
        Step("kubectl set image pod/web web=nginx:1.26"),
        eventually(client("c", "wget -qO- web/version"), "1.26"),
        Step("kubectl get pod web -o jsonpath='{.status.podIP}'", r"10\.244\."),
        Step("kubectl delete pod web --grace-period=0 --force", "force deleted"),
    ],
    "what-the-lab-does-not-do": [
        refused("kubectl create job pi --image=perl -- perl", "the lab serves no jobs"),
        refused("kubectl create cronjob c --image=i --schedule='* * * * *'", "no cronjobs"),
        refused("kubectl create ingress web --rule=a/*=web:80", "the lab serves no ingresses"),
        Step(WEB),
        refused("kubectl autoscale deployment web --max=3", "no horizontalpodautoscalers"),
        refused("kubectl top pods", "Metrics API not available"),
        refused("kubectl create role r --verb=get --resource=pods", "the lab serves no roles"),
        refused(
            "kubectl apply -f - <<'END'\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
            "metadata: {name: deny}\nspec: {podSelector: {}}\nEND",
            "the lab serves no networkpolicies",
        ),
        refused(
            "kubectl apply -f - <<'END'\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n"
            "metadata: {name: g}\nEND",
            'no matches for kind "Gateway"',
        ),
        refused("kubectl get pvc", "the lab serves no persistentvolumeclaims"),
        refused("kubectl create configmap c --from-literal=a=b --dry-run=server", "dryRun is not"),
        refused(
            "kubectl create configmap c --from-literal=a=b -o yaml --dry-run=client | "
            "kubectl apply --server-side -f -",
            "without --server-side",
        ),
    ],
}

FURTHER = frozenset(
    {"scale-your-app", "connect-applications", "guestbook", "blue-green", "external-ip"}
)
"""Tutorials that run with --all-tutorials alone: the others have the same commands."""
