"""Manifests against the schemas of Kubernetes and of the Kubeflow trainer, in which unknown fields are errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as models
import kubernetes_validate
import yaml
from common import Sizes, run


def dropped(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Fields that a model did not take over."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}/{key}"
            else:
                yield from dropped(value, kept[key], f"{path}/{key}")
    elif isinstance(given, list):
        for index, value in enumerate(given):
            other = kept[index] if isinstance(kept, list) and index < len(kept) else None
            yield from dropped(value, other, f"{path}/{index}")


def manifests(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def strict(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def check(folder: Path, expected: Sizes) -> Sizes:
    sizes: Sizes = {}
    for manifest in manifests(folder / "jobset.yaml") + manifests(folder / "trainjob.yaml"):
        kind = manifest["kind"]
        if kind == "ConfigMap":
            strict(manifest)
            continue
        model = models.JobsetV1alpha2JobSet if kind == "JobSet" else models.TrainerV1alpha1TrainJob
        kept = model.from_dict(manifest)
        lost = [path for path in dropped(manifest, kept.to_dict()) if not path.startswith("/metadata")]
        assert not lost, f"{kind} does not know {lost}"
        if kind == "JobSet":
            (job,) = manifest["spec"]["replicatedJobs"]
            pod = job["template"]["spec"]["template"]
            strict({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod["spec"]})
            (container,) = pod["spec"]["containers"]
            devices = int(container["resources"]["limits"]["nvidia.com/gpu"])
            sizes["devices"] = job["template"]["spec"]["parallelism"] * devices
        else:
            trainer = kept.spec.trainer
            assert trainer.num_nodes * trainer.num_proc_per_node == sizes["devices"]
    return sizes


run(check)
