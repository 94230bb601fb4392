"""The fields of the Kubernetes objects and of the Compose services in deploy/, with the types of their values.

`{"*": ...}` has any names, a list has one form of item, a tuple several possible types.
"""

from __future__ import annotations

from typing import Any

_MAP = {"*": str}
_META = {"name": str, "namespace": str, "labels": _MAP, "annotations": _MAP}
_SELECTOR = {"matchLabels": _MAP}
_PROBE = {
    "httpGet": {"path": str, "port": str},
    **dict.fromkeys(("periodSeconds", "timeoutSeconds", "failureThreshold"), int),
}
_CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "ports": [{"name": str, "containerPort": int}],
    "env": [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}],
    **dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), _PROBE),
    "lifecycle": {"preStop": {"sleep": {"seconds": int}}},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "resources": {"requests": _MAP, "limits": _MAP},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
_POD = {
    "terminationGracePeriodSeconds": int,
    "restartPolicy": str,
    "automountServiceAccountToken": bool,
    "securityContext": {"runAsNonRoot": bool, "seccompProfile": {"type": str}},
    "topologySpreadConstraints": [
        {"maxSkew": int, "topologyKey": str, "whenUnsatisfiable": str, "labelSelector": _SELECTOR}
    ],
    "containers": [_CONTAINER],
    "volumes": [{"name": str, "emptyDir": {}, "secret": {"secretName": str}}],
}
_TEMPLATE = {"metadata": _META, "spec": _POD}
_HEAD = {"apiVersion": str, "kind": str, "metadata": _META}
_PORT = {"name": str, "port": int, "targetPort": str, "protocol": str}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("apps/v1", "Deployment"): {
        **_HEAD,
        "spec": {
            "replicas": int,
            "strategy": {"type": str, "rollingUpdate": {"maxSurge": int, "maxUnavailable": int}},
            "selector": _SELECTOR,
            "template": _TEMPLATE,
        },
    },
    ("batch/v1", "Job"): {
        **_HEAD,
        "spec": {"backoffLimit": int, "ttlSecondsAfterFinished": int, "template": _TEMPLATE},
    },
    ("v1", "Service"): {**_HEAD, "spec": {"selector": _MAP, "ports": [_PORT]}},
    ("policy/v1", "PodDisruptionBudget"): {
        **_HEAD,
        "spec": {"maxUnavailable": int, "minAvailable": int, "selector": _SELECTOR},
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        **_HEAD,
        "spec": {
            "podSelector": _SELECTOR,
            "policyTypes": [str],
            "ingress": [{"from": [{"namespaceSelector": _SELECTOR}], "ports": [_PORT]}],
        },
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        **_HEAD,
        "spec": {
            "scaleTargetRef": {"name": str},
            **dict.fromkeys(("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"), int),
            "fallback": {"failureThreshold": int, "replicas": int},
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleDown": {
                            "stabilizationWindowSeconds": int,
                            "policies": [{"type": str, "value": int, "periodSeconds": int}],
                        }
                    }
                }
            },
            "triggers": [
                {
                    "type": str,
                    "metricType": str,
                    "metadata": dict.fromkeys(("serverAddress", "query", "threshold", "activationThreshold"), str),
                }
            ],
        },
    },
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"): {
        "apiVersion": str,
        "kind": str,
        "namespace": str,
        "images": [{"name": str, "newName": str, "newTag": str}],
        "resources": [str],
    },
}
SERVICE: dict[str, Any] = {
    "build": {"context": str, "dockerfile": str},
    "image": str,
    "command": [str],
    "environment": _MAP,
    "restart": str,
    "read_only": bool,
    **{key: [str] for key in ("tmpfs", "cap_drop", "security_opt", "volumes", "ports", "secrets")},
    "shm_size": str,
    "stop_grace_period": str,
    "healthcheck": {
        "test": [str],
        "interval": str,
        "timeout": str,
        "start_period": str,
        "retries": int,
        "disable": bool,
    },
    "depends_on": {"*": {"condition": str}},
}


def unknown_fields(value: Any, form: Any, path: str) -> list[str]:
    """Return the fields of a value that its form does not have, or that have another type."""
    if isinstance(form, type):
        is_right = isinstance(value, form) and not (form is int and isinstance(value, bool))
        return [] if is_right else [f"{path} is {value!r}, not {form.__name__}"]
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [text for at, one in enumerate(value) for text in unknown_fields(one, form[0], f"{path}[{at}]")]
    if not isinstance(value, dict):
        return [f"{path} is no mapping"]
    found: list[str] = []
    for name, one in value.items():
        inner = form.get(name, form.get("*"))
        found += [f"{path}.{name} is unknown"] if inner is None else unknown_fields(one, inner, f"{path}.{name}")
    return found
