//! Parsers of Slurm's formats: steps, tasks on nodes, lists of hosts.

use super::{Launcher, Names, Variables};
use autodist_spec::InputError;

/// Step numbers from here on are not from `srun`: the batch script, an interactive shell, and external steps
/// (`SLURM_MAX_NORMAL_STEP_ID` of slurm.h).
const FIRST_SPECIAL_STEP: u64 = 0xffff_fff0;
const STEP: &str = "SLURM_STEP_ID";
const NODE: &str = "SLURM_NODEID";
const TASKS_PER_NODE: &str = "SLURM_STEP_TASKS_PER_NODE";
const NODE_LISTS: [&str; 3] = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
const LAUNCH_NODE: &str = "SLURM_LAUNCH_NODE_IPADDR";

/// Whether `srun` has started this process. A batch script and the shell of `salloc` have a rank and a number
/// of tasks too, but are single processes.
pub(super) fn is_step(variables: &Variables<'_>) -> bool {
    let step = variables.text(STEP).and_then(|step| step.parse::<u64>().ok());
    step.is_some_and(|step| step < FIRST_SPECIAL_STEP) && variables.has(&["SLURM_PROCID"])
}

pub(super) fn names(variables: &Variables<'_>) -> Names {
    let of_step = "SLURM_STEP_NUM_TASKS";
    Names {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        // The job's number of tasks, if the step's is not set.
        world: if variables.has(&[of_step]) { of_step } else { "SLURM_NTASKS" },
        local_rank: "SLURM_LOCALID",
        local_world: if variables.has(&[TASKS_PER_NODE]) { TASKS_PER_NODE } else { "SLURM_NTASKS_PER_NODE" },
    }
}

/// Tasks of the step on this node.
pub(super) fn local_world(variables: &Variables<'_>) -> Result<usize, InputError> {
    let names = names(variables);
    let Some(text) = variables.text(TASKS_PER_NODE) else { return variables.count(names.local_world) };
    let node = variables.number(NODE)?;
    let counts = tasks_per_node(&text)
        .ok_or_else(|| variables.wrong(TASKS_PER_NODE, "expected a list of counts such as 2(x3),1"))?;
    // A count may be for a million nodes, so the list is not expanded.
    let mut first = 0_usize;
    for (count, nodes) in counts {
        first = first.saturating_add(nodes);
        if node < first {
            return Ok(count);
        }
    }
    Err(variables.wrong(NODE, format!("must be below {first}, the number of nodes in {TASKS_PER_NODE}")))
}

/// `2(x3),1` as tasks and the number of nodes that have so many: (2, 3), (1, 1).
fn tasks_per_node(text: &str) -> Option<Vec<(usize, usize)>> {
    let part = |part: &str| {
        let (count, nodes) = match part.split_once("(x") {
            Some((count, nodes)) => (count, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        Some((count.parse().ok().filter(|count| *count > 0)?, nodes))
    };
    text.split(',').map(part).collect()
}

/// The machine of task 0: the first of the step. The host on which `srun` was called may be a login node.
pub(super) fn host(variables: &Variables<'_>) -> Result<String, InputError> {
    let list = NODE_LISTS.into_iter().find_map(|name| Some((name, variables.text(name)?)));
    if let Some((name, list)) = list {
        return first_host(&list).ok_or_else(|| {
            let problem = "expected a list of hosts such as node[03-07,9]";
            InputError::new(name, list, problem).hint("set MASTER_ADDR to the machine of task 0")
        });
    }
    variables.text(LAUNCH_NODE).ok_or_else(|| {
        InputError::new(
            NODE_LISTS[0],
            "",
            "is missing, and so are all other variables with the machine of task 0",
        )
        .hint("set MASTER_ADDR to the machine of task 0")
    })
}

/// `node03` of `node[03-07,9],other`. Brackets may stand anywhere in a name, more than once.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find([',', '[', ']']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        rest = &rest[end..];
        let Some(inside) = rest.strip_prefix('[') else { break };
        let (ranges, after) = inside.split_once(']')?;
        let first = ranges.split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = after;
    }
    let whole = rest.is_empty() || rest.starts_with(',');
    (whole && !host.is_empty() && !host.contains(char::is_whitespace)).then_some(host)
}
