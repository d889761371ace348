//! Manifests for Kubernetes: a JobSet, and a TrainJob of the Kubeflow trainer.

use crate::document::{Document, yaml};
use crate::launch::{Machines, quoted};
use crate::row::{FieldMapping, UnsupportedField};
use crate::slurm::{ASKS, PLAN, steps};
use crate::{Ask, Export, Exporter, File, Files};
use autodist_spec::{InputError, Plan, to_json};
use serde_json::{Value, json};

pub struct Kubernetes;

impl Exporter for Kubernetes {
    fn version(&self) -> &'static str {
        "JobSet v1alpha2, Kubeflow TrainJob v1alpha1"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        &[]
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        &[]
    }

    fn files(&self, _: &Document, job: &Export<'_>) -> Vec<File> {
        let own = job.options.script.is_none();
        let mut jobset = if own { config_map(job) + "---\n" } else { String::new() };
        jobset += &yaml(&self::jobset(job));
        let mut trainjob = if own { config_map(job) + "---\n" } else { String::new() };
        trainjob += &yaml(&self::trainjob(job));
        vec![File::text("jobset.yaml", jobset), File::text("trainjob.yaml", trainjob)]
    }

    fn asks(&self) -> &'static [Ask] {
        &ASKS
    }

    fn parse(&self, _: &str, _open: Files) -> Result<Document, InputError> {
        Err(InputError::new(
            "",
            "kubernetes",
            "only starts processes; the trainer's own file holds the strategy",
        )
        .hint("give the trainer's configuration with `--from TRAINER FILE`"))
    }
}

const NAME: &str = "autodist";

/// The plan, as a ConfigMap to mount into pods.
fn config_map(job: &Export<'_>) -> String {
    // Points of a figure would only be in the way of a reader.
    let plan = Plan { priced: Vec::new(), ..job.plan.clone() };
    yaml(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": format!("{NAME}-plan") },
        "data": { PLAN: to_json(&plan) },
    }))
}

/// The command of each node, with NODE_RANK and MASTER_ADDR set if there are several nodes.
fn command(job: &Export<'_>) -> String {
    match &job.options.script {
        // The container's `args` are the script's.
        Some(script) => format!("exec bash {} \"$@\"", quoted(script)),
        None => {
            let asked: String = job.asked().map(|ask| format!("{}; ", ask.line())).collect();
            let (torchrun, steps) = (job.machines.torchrun(), steps(job));
            format!(
                "{asked}exec {torchrun} --no-python autodist train /plan/{PLAN} --steps {steps} -o /tmp/run.json"
            )
        }
    }
}

fn resources(machines: Machines) -> Value {
    let key = if machines.gpus { "nvidia.com/gpu" } else { "cpu" };
    json!({ "limits": { key: machines.devices.to_string() } })
}

/// Variables for the user to fill in.
fn to_fill(job: &Export<'_>) -> Vec<Value> {
    let asked = job.asked().filter(|_| job.options.script.is_none());
    asked.map(|ask| json!({ "name": ask.variable, "value": "" })).collect()
}

/// A list of the script's arguments for the user to fill in.
fn fill_in_arguments(container: &mut Value, job: &Export<'_>) {
    if job.options.script.is_some() {
        container["args"] = json!([]);
    }
}

fn jobset(job: &Export<'_>) -> Value {
    let own = job.options.script.is_none();
    let machines = job.machines;
    // The DNS name of a JobSet's pod is <jobset>-<job>-<job index>-<pod index>.<jobset>.
    let mut environment = json!([
        { "name": "MASTER_ADDR", "value": format!("{NAME}-node-0-0.{NAME}") },
        {
            "name": "NODE_RANK",
            "valueFrom": {
                "fieldRef": { "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']" },
            },
        },
    ]);
    if let Some(list) = environment.as_array_mut() {
        list.extend(to_fill(job));
    }
    let mounts = if own { json!([{ "name": "plan", "mountPath": "/plan" }]) } else { json!([]) };
    let volumes = if own {
        json!([{ "name": "plan", "configMap": { "name": format!("{NAME}-plan") } }])
    } else {
        json!([])
    };
    let mut container = json!({
        "name": "trainer",
        "image": job.options.image,
        "command": ["bash", "-c", command(job), NAME],
        "env": environment,
        "resources": resources(machines),
        "volumeMounts": mounts,
    });
    fill_in_arguments(&mut container, job);
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": { "name": NAME },
        "spec": {
            "replicatedJobs": [{
                "name": "node",
                "replicas": 1,
                "template": { "spec": {
                    "parallelism": machines.nodes,
                    "completions": machines.nodes,
                    "completionMode": "Indexed",
                    "backoffLimit": 0,
                    "template": { "spec": {
                        "restartPolicy": "Never",
                        "containers": [container],
                        "volumes": volumes,
                    } },
                } },
            }],
        },
    })
}

fn trainjob(job: &Export<'_>) -> Value {
    // The runtime sets PET_NODE_RANK and PET_MASTER_ADDR, which torchrun reads instead of flags.
    let command =
        format!("export NODE_RANK=\"$PET_NODE_RANK\" MASTER_ADDR=\"$PET_MASTER_ADDR\"; {}", command(job));
    let mut value = json!({
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": { "name": NAME },
        "spec": {
            "runtimeRef": {
                "name": "torch-distributed",
                "kind": "ClusterTrainingRuntime",
                "apiGroup": "trainer.kubeflow.org",
            },
            "trainer": {
                "image": job.options.image,
                "command": ["bash", "-c", command, NAME],
                "numNodes": job.machines.nodes,
                "numProcPerNode": job.machines.devices,
                "resourcesPerNode": resources(job.machines),
            },
        },
    });
    fill_in_arguments(&mut value["spec"]["trainer"], job);
    let to_fill = to_fill(job);
    if !to_fill.is_empty() {
        value["spec"]["trainer"]["env"] = to_fill.into();
    }
    if job.options.script.is_none() {
        let pod = json!({
            "volumes": [{ "name": "plan", "configMap": { "name": format!("{NAME}-plan") } }],
            "containers": [{ "name": "node", "volumeMounts": [{ "name": "plan", "mountPath": "/plan" }] }],
        });
        let jobs = json!([{ "name": "node", "template": { "spec": { "template": { "spec": pod } } } }]);
        value["spec"]["runtimePatches"] = json!([{
            "manager": format!("{NAME}/export"),
            "trainingRuntimeSpec": { "template": { "spec": { "replicatedJobs": jobs } } },
        }]);
    }
    value
}
