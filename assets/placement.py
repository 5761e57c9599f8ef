"""Where steps run on Kubernetes: which nodes, with which resources, for how long.

All of it is in the tag `dagster-k8s/config`, which only the Kubernetes executors and launchers read: on a laptop it is
text. The CPU and the GPU placement use one node label, because Dagster merges selectors key by key: two labels would ask
for a node that has both.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from kb_platform.settings import Settings

K8S_TAG = "dagster-k8s/config"
GPU_POOL = "gpu"
GPU_RESOURCE = "nvidia.com/gpu"

# The deadline of a Job counts from its creation: scale-up from zero and the pull of the image are within it. Dagster
# itself never gives up on a step's pod that stays Pending.
GPU_DEADLINE_S = 4 * 3600
CPU_DEADLINE_S = 2 * 3600
KEPT_AFTER_END_S = 3600


def on_cpu(settings: Settings) -> dict[str, Any]:
    """Op tags of a step that needs no GPU."""
    resources = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    return {K8S_TAG: _config(settings, settings.cpu_node_value, CPU_DEADLINE_S, resources, [])}


def on_gpu(settings: Settings) -> dict[str, Any]:
    """Op tags of a step that needs a GPU: the GPU nodes, past their taint, with one GPU of its own."""
    resources = {
        "requests": {"cpu": "2", "memory": "6Gi"},
        "limits": {GPU_RESOURCE: "1", "memory": "12Gi"},
    }
    toleration = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}
    return {K8S_TAG: _config(settings, settings.gpu_node_value, GPU_DEADLINE_S, resources, [toleration])}


def executor(settings: Settings) -> dg.ExecutorDefinition:
    """One process on a laptop, where a run is quick; one pod for each step on a cluster."""
    if not settings.kubernetes:
        return dg.in_process_executor
    # Imported where it is used: it brings the Kubernetes client, which takes as long as Dagster itself.
    from dagster_k8s import k8s_job_executor

    return k8s_job_executor.configured(
        {
            # A step's Job ends with its run's pod, or it would write after its run has failed.
            "enable_owner_references": True,
            "step_k8s_config": on_cpu(settings)[K8S_TAG],
        }
    )


def _config(
    settings: Settings,
    node_value: str,
    deadline_s: int,
    resources: dict[str, dict[str, str]],
    tolerations: list[dict[str, str]],
) -> dict[str, Any]:
    return {
        # Requests and limits together, or a limit of the run's own pod, which is merged in, would cut the request.
        "container_config": {"resources": resources},
        "pod_spec_config": {
            "node_selector": {settings.gpu_node_label: node_value},
            "tolerations": tolerations,
            # A Service named kb would put KB_PORT=tcp://… into the environment, which is a setting.
            "enable_service_links": False,
        },
        "job_spec_config": {
            "active_deadline_seconds": deadline_s,
            # Retries are Dagster's, which knows what a step has done.
            "backoff_limit": 0,
            "ttl_seconds_after_finished": KEPT_AFTER_END_S,
        },
    }
