"""What the schemas cannot say about what the chart writes: python3 check.py NAME HELM3.yaml HELM4.yaml FOLDER.

Prints what is wrong and fails. FOLDER is for the configurations, which the server of MYELIN_BINARY reads.
"""
import json
import os
import pathlib
import subprocess
import sys

import yaml

name, three, four, folder = sys.argv[1:]
problems = []


def say(*words):
    problems.append(" ".join(map(str, words)))


def load(path):
    return [document for document in yaml.safe_load_all(open(path)) if document]


def of(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def pod_specs(documents):
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield document, document["spec"]["template"]["spec"], document["spec"]["template"]["metadata"]["labels"]
        elif document["kind"] == "Pod":
            yield document, document["spec"], document["metadata"]["labels"]


def restricted(document, spec):
    """The restricted standard for pods, and a read-only root besides."""
    where = f"{document['kind']} {document['metadata']['name']}"
    pod = spec.get("securityContext", {})
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        say(where, "may run as root")
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        say(where, "has no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        say(where, "gets a token of the API")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            say(where, "has", key)
    for volume in spec.get("volumes", []):
        if not set(volume) & {"configMap", "secret", "projected", "emptyDir", "persistentVolumeClaim"}:
            say(where, "has a volume of a kind that the restricted standard does not know:", volume)
    mounted = {volume["name"] for volume in spec.get("volumes", [])}
    if document["kind"] == "StatefulSet":
        mounted |= {claim["metadata"]["name"] for claim in document["spec"]["volumeClaimTemplates"]}
    for container in spec["containers"] + spec.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            say(where, container["name"], "keeps privileges")
        if not own.get("readOnlyRootFilesystem"):
            say(where, container["name"], "can write to its root")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            say(where, container["name"], "has no limit of memory")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in mounted:
                say(where, "mounts", mount["name"], "which is not there")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            # The API takes one handler, which no schema says.
            handlers = set(container.get(probe, {})) & {"httpGet", "exec", "tcpSocket", "grpc"}
            if document["kind"] != "Pod" and len(handlers) != 1:
                say(where, container["name"], probe, "has the handlers", handlers)


def matches(selector, labels):
    return selector.items() <= labels.items()


def references(documents):
    """Whoever is named is there."""
    pods = list(pod_specs(documents))
    for service in of(documents, "Service"):
        found = [spec for document, spec, labels in pods if document["kind"] != "Pod" and matches(service["spec"]["selector"], labels)]
        if len(found) != 1:
            say("Service", service["metadata"]["name"], "selects", len(found), "workloads")
            continue
        ports = {port["name"] for container in found[0]["containers"] for port in container.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                say("Service", service["metadata"]["name"], "leads to the port", port["targetPort"], "which is not there")
    services = {service["metadata"]["name"]: {port["name"] for port in service["spec"]["ports"]} for service in of(documents, "Service")}
    for ingress in of(documents, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                if backend["port"]["name"] not in services.get(backend["name"], ()):
                    say("Ingress leads to", backend)
    for route in of(documents, "HTTPRoute"):
        numbers = {service["metadata"]["name"]: {port["port"] for port in service["spec"]["ports"]} for service in of(documents, "Service")}
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if backend["port"] not in numbers.get(backend["name"], ()):
                    say("HTTPRoute leads to", backend)
    for monitor in of(documents, "ServiceMonitor"):
        found = [service for service in of(documents, "Service")
                 if matches(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        if len(found) != 1 or found[0]["spec"]["ports"][0]["name"] != monitor["spec"]["endpoints"][0]["port"]:
            say("ServiceMonitor selects", [service["metadata"]["name"] for service in found])
    for policy in of(documents, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        if not any(matches(selector, labels) for document, _, labels in pods if document["kind"] != "Pod"):
            say("NetworkPolicy", policy["metadata"]["name"], "selects nothing")
    deployment = of(documents, "Deployment")[0]
    for scaler in of(documents, "HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"] or "replicas" in deployment["spec"]:
            say("the autoscaler and the deployment disagree")


def secrets(documents):
    """Made ones are long, and differ from each other."""
    made = [value for secret in of(documents, "Secret") if not secret["metadata"]["name"].endswith("-database")
            for key, value in secret["data"].items() if key != "url"]
    if len(set(made)) != len(made) or any(len(value) < 32 for value in made):
        say("secrets that are short or the same")
    return made


def configuration(documents):
    """The server reads what the chart writes for it."""
    config = next(document for document in of(documents, "ConfigMap") if "myelin.toml" in document["data"])
    place = pathlib.Path(folder) / name
    (place / "secrets").mkdir(parents=True, exist_ok=True)
    for secret, text in {"database_url": "postgres://m:p@db.example/m", "registration_token": "t" * 32,
                         "registration_shared_secret": "s" * 48}.items():
        (place / "secrets" / secret).write_text(text)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=example.org", "-addext", "subjectAltName=DNS:example.org,DNS:matrix.example.org",
                    "-keyout", place / "secrets/tls.key", "-out", place / "secrets/tls.crt"], check=True, capture_output=True)
    arguments = []
    for file, text in config["data"].items():
        text = text.replace("/run/secrets/myelin/", f"{place}/secrets/").replace("/run/secrets/tls/", f"{place}/secrets/")
        (place / file).write_text(text.replace("/var/lib/myelin", str(place / "data")))
    container = of(documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    for argument in container["args"][1:]:
        arguments.append(argument.replace("/etc/myelin/", f"{place}/"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MYELIN_")}
    result = subprocess.run([os.environ["MYELIN_BINARY"], "config", "check", *arguments], env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        say("the server refuses the configuration:", result.stdout, result.stderr)


def monitoring(documents):
    for rule in of(documents, "PrometheusRule"):
        path = pathlib.Path(folder) / "rules.yml"
        path.write_text(yaml.safe_dump(rule["spec"]))
        result = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
        if result.returncode != 0:
            say("PrometheusRule:", result.stdout, result.stderr)
    boards = [document for document in of(documents, "ConfigMap") if "grafana_dashboard" in document["metadata"].get("labels", {})]
    for board in boards:
        for text in board["data"].values():
            json.loads(text)
    if name == "replicas" and len(boards) < 8:
        say("dashboards are missing")


def expected(documents):
    """What the values of one case ask for."""
    kinds = {document["kind"] for document in documents}
    deployment = of(documents, "Deployment")[0]
    service = next(service for service in of(documents, "Service") if service["metadata"]["name"] == deployment["metadata"]["name"])
    ports = {port["port"] for port in service["spec"]["ports"]}
    config = next(document for document in of(documents, "ConfigMap") if "myelin.toml" in document["data"])["data"]
    want = {
        "minimal": lambda: {"StatefulSet", "NetworkPolicy", "PersistentVolumeClaim"} <= kinds and ports == {8008} and "PodDisruptionBudget" not in kinds,
        "sqlite": lambda: not {"StatefulSet", "NetworkPolicy"} & kinds and "url_file" not in config["myelin.toml"] and "federation\"" not in config["myelin.toml"],
        "ingress": lambda: [rule["host"] for rule in of(documents, "Ingress")[0]["spec"]["rules"]] == ["matrix.example.org", "example.org"]
        and 'server = "matrix.example.org:443"' in config["myelin.toml"],
        "gateway": lambda: len(of(documents, "HTTPRoute")) == 2 and "StatefulSet" not in kinds,
        "acme": lambda: ports == {443, 80, 8448} and 'mode = "acme"' in config["myelin.toml"] and "[well_known]" not in config["myelin.toml"],
        "cert-manager": lambda: of(documents, "Certificate")[0]["spec"]["dnsNames"] == ["matrix.example.org", "example.org"],
        "replicas": lambda: {"Cluster", "PodDisruptionBudget", "ServiceMonitor", "PrometheusRule"} <= kinds
        and deployment["spec"]["replicas"] == 3 and deployment["spec"]["strategy"]["type"] == "RollingUpdate",
        "autoscaling": lambda: {"HorizontalPodAutoscaler", "PodDisruptionBudget"} <= kinds and not {"Cluster", "PersistentVolumeClaim"} & kinds,
        "everything": lambda: "ServiceAccount" not in kinds and not of(documents, "Secret") and "extra.toml" in config,
    }
    if not want[name]():
        say("what is made is not what the values ask for")


def main():
    older, newer = load(three), load(four)
    def identity(documents):
        return sorted((document["kind"], document["metadata"]["name"]) for document in documents)
    if identity(older) != identity(newer):
        say("helm 3 and helm 4 make different things")
    for documents in (older, newer):
        for document, spec, _ in pod_specs(documents):
            restricted(document, spec)
        references(documents)
        expected(documents)
    if secrets(older) and secrets(older) == secrets(newer):
        say("two installations have the same secrets")
    pathlib.Path(folder).mkdir(exist_ok=True)
    configuration(newer)
    monitoring(newer)
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


main()
