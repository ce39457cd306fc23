"""Types of the fields that the manifests use, from the references of the tools; the complete schemas are not included.

KubeRay 1.6 `ray.io/v1`, Kubernetes `batch/v1` and `networking.k8s.io/v1`, the Compose format.
"""

from __future__ import annotations

from typing import Any

Schema = Any
"""One of: a type; {field: schema}, with "?" after optional fields; [schema] for a list; {str: schema} for any fields;
a tuple of the allowed values."""


def misfits(value: Any, schema: Schema, where: str = "") -> list[str]:
    """The differences between `value` and `schema`: one line each."""
    if isinstance(schema, type):
        right = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
        return [] if right else [f"{where} is {value!r}, not of type {schema.__name__}"]
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{where} is {value!r}, not one of {schema}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is {value!r}, not a list"]
        return [line for number, item in enumerate(value) for line in misfits(item, schema[0], f"{where}[{number}]")]
    if not isinstance(value, dict):
        return [f"{where} is {value!r}, not a mapping"]
    if str in schema:
        return [line for name, item in value.items() for line in misfits(item, schema[str], f"{where}.{name}")]
    known = {name.removesuffix("?"): inner for name, inner in schema.items()}
    found = [f"{where} has no {name}" for name in schema if not name.endswith("?") and name not in value]
    for name, item in value.items():
        found += misfits(item, known[name], f"{where}.{name}") if name in known else [f"{where} has {name!r}, unknown"]
    return found


SECURITY = {
    "runAsNonRoot?": bool,
    "runAsUser?": int,
    "runAsGroup?": int,
    "fsGroup?": int,
    "fsGroupChangePolicy?": ("OnRootMismatch", "Always"),
    "seccompProfile?": {"type": ("RuntimeDefault",)},
    "allowPrivilegeEscalation?": bool,
    "capabilities?": {"drop": [str]},
}
CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy?": ("IfNotPresent", "Always", "Never"),
    "command?": [str],
    "args?": [str],
    "env?": [
        {"name": str, "value?": str, "valueFrom?": {"secretKeyRef": {"name": str, "key": str, "optional?": bool}}}
    ],
    "ports?": [{"name": str, "containerPort": int}],
    "resources": {"limits": {str: object}, "requests": {str: object}},  # quantities: strings or numbers
    "securityContext?": SECURITY,
    "volumeMounts?": [{"name": str, "mountPath": str}],
}
POD = {
    "metadata?": {"labels": {str: str}},
    "spec": {
        "automountServiceAccountToken?": bool,
        "terminationGracePeriodSeconds?": int,
        "restartPolicy?": ("Never", "OnFailure", "Always"),
        "tolerations?": [{"key": str, "operator": ("Exists", "Equal"), "effect": ("NoSchedule", "NoExecute")}],
        "securityContext?": SECURITY,
        "containers": [CONTAINER],
        "volumes?": [
            {
                "name": str,
                "persistentVolumeClaim?": {"claimName": str},
                "emptyDir?": {"medium?": ("Memory",), "sizeLimit?": str},
            }
        ],
    },
}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": ("token", "disabled"), "secretName?": str},
    "headGroupSpec": {"serviceType?": ("ClusterIP",), "rayStartParams": {str: str}, "template": POD},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": {str: str},
            "template": POD,
        }
    ],
}
METADATA = {"name": str}

KUBERNETES: dict[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayCluster"): {"apiVersion": str, "kind": str, "metadata": METADATA, "spec": CLUSTER},
    ("ray.io/v1", "RayJob"): {
        "apiVersion": str,
        "kind": str,
        "metadata": METADATA,
        "spec": {
            "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
            "entrypoint": str,
            "runtimeEnvYAML?": str,
            "backoffLimit?": int,
            "shutdownAfterJobFinishes?": bool,
            "ttlSecondsAfterFinished?": int,
            "rayClusterSpec": CLUSTER,
        },
    },
    ("batch/v1", "CronJob"): {
        "apiVersion": str,
        "kind": str,
        "metadata": METADATA,
        "spec": {
            "schedule": str,
            "timeZone?": str,
            "concurrencyPolicy?": ("Allow", "Forbid", "Replace"),
            "startingDeadlineSeconds?": int,
            "successfulJobsHistoryLimit?": int,
            "failedJobsHistoryLimit?": int,
            "jobTemplate": {"spec": {"backoffLimit?": int, "activeDeadlineSeconds?": int, "template": POD}},
        },
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "apiVersion": str,
        "kind": str,
        "metadata": METADATA,
        "spec": {
            "podSelector": {"matchLabels": {str: str}},
            "policyTypes": [("Ingress", "Egress")],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {"matchLabels": {str: str}}, "namespaceSelector?": {"matchLabels?": {str: str}}}
                    ],
                    "ports?": [{"protocol": ("TCP", "UDP"), "port": int}],
                }
            ],
        },
    },
}

COMPOSE = {
    "name": str,
    "services": {
        str: {
            "image": str,
            "build?": {"context": str, "dockerfile": str},
            "restart?": ("no", "always", "on-failure", "unless-stopped"),
            "command?": [str],
            "environment?": {str: str},
            "volumes?": [str],
            "ports?": [str],
            "networks?": [str],
            "depends_on?": {str: {"condition": ("service_started", "service_healthy")}},
            "cap_drop?": [str],
            "security_opt?": [str],
            "healthcheck?": {"test": [str], "interval": str, "timeout": str, "retries": int},
        }
    },
    "networks": {str: {"internal?": bool}},
    "volumes": {str: dict},
}
