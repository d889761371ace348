//! Prices of a cluster that was not measured: published figures of its devices and links, and efficiencies of
//! training steps that were fitted to runs.

use super::without_profile;
use crate::cli::{FigureArgs, JobArgs, PriceArgs, SoftwareArgs};
use crate::failure::Failure;
use crate::{input, output, price};
use autodist_analytic::{
    AttentionChoice, BlockKind, Calibration, CataloguePrices, FreeParameters, KernelChoice, LossKind,
    NodeModel, ParallelDims, Trainer, TrainingRun, states::HostRates,
};
use autodist_cost_model::{CostModel, Prices};
use autodist_hardware::Catalogue;
use autodist_spec::error::in_range;
use autodist_spec::{
    Bytes, CatalogueReference, Check, Cluster, ClusterPart, DeviceClasses, Engine, InputError, Job,
    KernelReference, ModelSpec, NodeKind, Plan, Precision, Profile, StateStorage, fingerprint,
};
use itertools::Itertools;
use std::path::PathBuf;
use std::sync::Arc;

/// How far the simulated step of a layout may be from the closed form, to which the error bar of a
/// calibration belongs: nine of ten published runs are within this fraction (docs/validation.md).
const SIMULATED: f64 = 0.05;

/// The software whose training steps are priced.
#[derive(Debug, Clone)]
pub struct Software {
    pub trainer: Trainer,
    pub kernels: KernelChoice,
    /// Facts that nobody gave.
    pub assumptions: Vec<String>,
}

impl Software {
    /// The given trainer, or Megatron-Core.
    pub fn of(args: SoftwareArgs) -> Self {
        let trainer = args.trainer.unwrap_or(Trainer::MegatronCore);
        Self { trainer, kernels: args.kernels(), assumptions: Vec::new() }
    }

    /// The reference that plans keep of the kernels of a run.
    fn kernels_of(&self, run: &TrainingRun) -> KernelReference {
        let loss = if run.fused_loss { LossKind::Fused } else { LossKind::Whole };
        KernelReference {
            attention: AttentionChoice::of(run.attention).to_string(),
            attention_given: self.kernels.attention.is_some(),
            loss: loss.to_string(),
            loss_given: self.kernels.loss.is_some(),
            blocks: self.kernels.blocks.map(|blocks| blocks.to_string()).unwrap_or_default(),
        }
    }
}

/// Most kinds of nodes of which every order is searched.
const MOST_ORDERED: usize = 4;

/// A cluster, and the source of the prices of its steps.
#[derive(Clone)]
pub struct Figures {
    pub cluster: Cluster,
    /// One for each kind of nodes.
    machines: Vec<Arc<NodeModel>>,
    pub parameters: FreeParameters,
    pub calibration: Calibration,
    /// Where the parameters are from.
    pub source: String,
    /// What nobody said about the cluster.
    pub assumptions: Vec<String>,
}

impl Figures {
    /// # Errors
    /// A file cannot be read, or the catalogue lacks a device.
    pub fn of(text: &str, args: &FigureArgs, price: &PriceArgs) -> Result<Self, Failure> {
        let catalogue = input::catalogue(&args.catalogue)?;
        let input::ReadCluster { mut cluster, assumptions } = input::cluster(text, &catalogue, None)?;
        if let Some(price) = &price.price {
            price::set(&mut cluster, price, &catalogue)?;
        }
        if let Some(bytes) = price.device_memory {
            in_range("--device-memory", bytes, 1 << 20, 1 << 50)?;
            cluster.nodes.iter_mut().for_each(|group| group.device.memory_bytes = Bytes(bytes));
            cluster.check().map_err(|error| error.in_file("--device-memory"))?;
        }
        let figures = Self::of_cluster(cluster, &catalogue, args, input::cluster_source(text))?;
        Ok(Self { assumptions, ..figures })
    }

    fn of_cluster(
        cluster: Cluster,
        catalogue: &Catalogue,
        args: &FigureArgs,
        source: &str,
    ) -> Result<Self, Failure> {
        let machine = |kind: &NodeKind| NodeModel::of_nodes(&cluster, kind.index, catalogue).map(Arc::new);
        let machines: Result<_, InputError> = cluster.node_kinds().iter().map(machine).collect();
        let machines = machines.map_err(|error| error.in_file(source))?;
        let (calibration, parameters, source) = match &args.calibration {
            Some(path) => {
                let (calibration, parameters) = input::calibration(path)?;
                let source = format!("{} ({})", path.display(), calibration.fitted_to);
                (calibration, parameters, source)
            }
            None => {
                let shipped = Calibration::shipped();
                let source = format!("shipped calibration ({})", shipped.fitted_to);
                (shipped.clone(), *FreeParameters::shipped(), source)
            }
        };
        Ok(Self { cluster, machines, parameters, calibration, source, assumptions: Vec::new() })
    }

    /// The cluster of `text` with `devices` devices: more or fewer of the same nodes, or fewer devices of one node.
    ///
    /// # Errors
    /// The cluster has several kinds of nodes, or its nodes do not have this number of devices together.
    pub fn of_size(&self, text: &str, args: &FigureArgs, devices: u32) -> Result<Self, Failure> {
        let catalogue = input::catalogue(&args.catalogue)?;
        let (mut whole, mut assumptions) = (self.cluster.clone(), self.assumptions.clone());
        if let ([group], None) = (whole.nodes.as_slice(), &whole.network)
            && group.uplink.is_none()
            && devices > group.devices
        {
            // Several nodes have the network that is usual for them.
            let two = match catalogue.named_node(text) {
                Some(node) => format!("2x{}", node.name),
                None => format!("2x{}x{}", group.devices, group.device.name),
            };
            let usual = input::cluster(&two, &catalogue, None)?;
            whole.network = usual.cluster.network;
            whole.nodes[0].nics = usual.cluster.nodes[0].nics;
            assumptions.extend(usual.assumptions);
        }
        let cluster = whole.of_size(devices).map_err(|error| InputError {
            field: "--scale".to_owned(),
            hint: "give sizes that the nodes can have, e.g. `--scale 8..1024`".to_owned(),
            ..error
        })?;
        let sized = Self::of_cluster(cluster, &catalogue, args, "--scale")?;
        Ok(Self { assumptions, ..sized })
    }

    /// The same nodes with their kinds in every order, the given one first: pipeline stages follow the order of
    /// the nodes. Of more than [`MOST_ORDERED`] kinds, only the given order.
    pub fn orders(&self) -> Vec<Self> {
        let kinds = self.cluster.node_kinds();
        if kinds.len() > MOST_ORDERED {
            return vec![self.clone()];
        }
        let starts = || kinds.iter().map(|kind| kind.index).chain([self.cluster.nodes.len()]);
        let groups: Vec<_> =
            starts().zip(starts().skip(1)).map(|(from, to)| &self.cluster.nodes[from..to]).collect();
        let in_order = |order: Vec<usize>| {
            let mut other = self.clone();
            other.cluster.nodes = order.iter().flat_map(|kind| groups[*kind]).cloned().collect();
            // Equal kinds may have become neighbours, which are one.
            let of_group: Vec<usize> =
                order.iter().flat_map(|kind| groups[*kind].iter().map(move |_| *kind)).collect();
            let firsts = other.cluster.node_kinds().into_iter().map(|kind| kind.index);
            other.machines = firsts.map(|index| Arc::clone(&self.machines[of_group[index]])).collect();
            other
        };
        let mut orders: Vec<Self> = Vec::new();
        for order in (0..kinds.len()).permutations(kinds.len()).map(in_order) {
            if orders.iter().all(|known| known.cluster.nodes != order.cluster.nodes) {
                orders.push(order);
            }
        }
        orders
    }

    /// A part of the same nodes.
    pub fn part(&self, part: &ClusterPart) -> Self {
        let machines = part.kinds.iter().map(|kind| Arc::clone(&self.machines[*kind])).collect();
        Self { cluster: part.cluster.clone(), machines, ..self.clone() }
    }

    /// The nodes in their order, for messages: by their devices, and by their place in the cluster as given if several
    /// kinds have the same ones.
    pub fn order_in(&self, given: &Self) -> String {
        let kinds = self.cluster.node_kinds();
        let alone = kinds.iter().map(|kind| &kind.group.device.name).all_unique();
        let name = |kind: &NodeKind| {
            let devices = format!("{} {}", kind.devices.len(), kind.group.device.name);
            match given.cluster.nodes.iter().position(|group| group == kind.group) {
                Some(index) if !alone => format!("{devices} (nodes[{index}])"),
                _ => devices,
            }
        };
        kinds.iter().map(name).join(", then ")
    }

    /// The 16-bit precision of the devices: fp16 where one of them has no bf16.
    fn usual_precision(&self) -> Precision {
        let all = self.machines.iter().all(|machine| computes_in(machine, Precision::Bf16));
        if all { Precision::Bf16 } else { Precision::Fp16 }
    }

    /// The precision of a job that does not give it; a note names it if it is not bf16.
    ///
    /// # Errors
    /// The job file cannot be read.
    pub fn precision_for(&self, job: &JobArgs) -> Result<Precision, Failure> {
        let usual = self.usual_precision();
        if usual != Precision::Bf16 && input::given_precision(job)?.is_none() {
            let lacks = self.machines.iter().find(|machine| !computes_in(machine, Precision::Bf16));
            let name = lacks.map_or("a device", |machine| machine.device_name.as_str());
            output::note(&format!("the precision is {usual} unless it is given, because {name} has no bf16"));
        }
        Ok(usual)
    }

    /// # Errors
    /// The devices do not compute in this precision.
    pub fn check(&self, precision: Precision) -> Result<(), InputError> {
        let Some(machine) = self.machines.iter().find(|machine| !computes_in(machine, precision)) else {
            return Ok(());
        };
        let name = &machine.device_name;
        let problem = format!("has no price on {name}: no published peak");
        let error = InputError::new("--precision", precision.name(), problem);
        let usual = self.usual_precision().name();
        Err(error
            .hint(format!("use --precision {usual}, or add `{precision}` to the `peaks` of a device file")))
    }

    /// The figures from which a plan was made; `None` if a profile is given or the plan was made from one.
    ///
    /// # Errors
    /// The plan was made with other efficiencies, or flags of figures have no effect.
    pub fn unless_profile(
        profile: Option<&PathBuf>,
        plan: &Plan,
        args: &FigureArgs,
    ) -> Result<Option<(Self, Software)>, Failure> {
        let figures = if profile.is_some() { None } else { Self::of_plan(plan, args)? };
        if figures.is_none() {
            without_profile(SoftwareArgs::default(), args)?;
        }
        Ok(figures)
    }

    /// The figures from which a plan was made; `None` if it was made from a profile.
    ///
    /// # Errors
    /// The plan was made with other efficiencies.
    pub fn of_plan(plan: &Plan, args: &FigureArgs) -> Result<Option<(Self, Software)>, Failure> {
        let Some(reference) = plan.cost_source.catalogue() else { return Ok(None) };
        let trainer = reference.trainer.parse().map_err(|_| {
            let known: Vec<_> = Trainer::ALL.iter().map(|trainer| trainer.name()).collect();
            InputError::new("cost_source.catalogue.trainer", &reference.trainer, "is not a known trainer")
                .hint(format!("expected one of {}", known.join(", ")))
        })?;
        let catalogue = input::catalogue(&args.catalogue)?;
        let figures = Self::of_cluster(plan.cluster.clone(), &catalogue, args, "the plan's cluster")?;
        let devices = figures.devices();
        if !reference.devices.is_empty() && devices != reference.devices {
            let names: Vec<_> = figures.machines.iter().map(|machine| machine.device_name.as_str()).collect();
            let names = names.join(", ");
            let problem = format!("is not the fingerprint of {names} in the catalogue, which is {devices}");
            return Err(InputError::new("cost_source.catalogue.devices", &reference.devices, problem)
                .hint("give the device file that the plan was made with by `--devices`, or plan again")
                .into());
        }
        let found = fingerprint(&figures.parameters);
        if found != reference.fingerprint {
            let problem = format!(
                "is not the fingerprint of {}, which is {found}: the plan was made with efficiencies fitted to {}",
                figures.source, reference.calibration
            );
            return Err(InputError::new(
                "cost_source.catalogue.fingerprint",
                &reference.fingerprint,
                problem,
            )
            .hint("give that calibration with `--calibration`, or plan again")
            .into());
        }
        let assumptions = plan.assumptions.clone();
        let kernels = kernels_in(reference)?;
        Ok(Some((figures, Software { trainer, kernels, assumptions })))
    }

    /// What is assumed of the nodes' hosts for state that is kept away from the devices.
    pub fn hosts(&self, states: &StateStorage) -> Vec<String> {
        let away = [states.optimizer, states.parameters, states.activations];
        if !away.iter().any(|tier| tier.is_away()) {
            return Vec::new();
        }
        let kinds = self.cluster.node_kinds();
        let of = |(kind, machine): (&NodeKind, &Arc<NodeModel>)| {
            HostRates::assumption(kind.group.host.as_ref(), machine, states)
        };
        kinds.iter().zip(&self.machines).filter_map(of).collect()
    }

    /// The fingerprint of the devices' figures.
    fn devices(&self) -> String {
        let figures: Vec<_> = self.machines.iter().map(|machine| machine.device.figures()).collect();
        if let [only] = figures.as_slice() { fingerprint(only) } else { fingerprint(&figures) }
    }

    /// The training run on one kind of nodes, without a layout.
    fn run_on(
        &self,
        machine: &Arc<NodeModel>,
        model: &ModelSpec,
        job: &Job,
        software: &Software,
    ) -> TrainingRun {
        let trainer = software.trainer;
        let run = TrainingRun {
            seq_len: job.seq_len,
            global_batch: job.global_batch,
            dtype: job.precision,
            states: job.states.clone(),
            training: job.trainable.usual(model),
            assumptions: software.assumptions.iter().chain(&self.assumptions).cloned().collect(),
            ..TrainingRun::new(model, Arc::clone(machine), ParallelDims::default(), trainer)
        };
        let generation = run.machine.generation;
        let attention = match (software.kernels.attention, trainer) {
            (Some(named), _) => trainer.attention_as(named, generation),
            // Published runs are of plain models; since 2024 those of Hugging Face use PyTorch's fused kernels.
            (None, Trainer::Deepspeed) => Trainer::Fsdp2.attention_on(generation),
            (None, _) => run.attention,
        };
        let eager = software.kernels.blocks.map_or(run.eager, |blocks| blocks == BlockKind::Eager);
        let keeps_each = software.kernels.blocks == Some(BlockKind::Eager);
        let fused_loss = software.kernels.loss == Some(LossKind::Fused);
        TrainingRun { attention, fused_loss, eager, keeps_each, ..run }
    }

    /// The closed form of a plan's run; `None` for several kinds of nodes.
    pub fn run_of(&self, plan: &Plan, software: &Software) -> Option<TrainingRun> {
        let [machine] = self.machines.as_slice() else { return None };
        Some(self.run_like(machine, plan, software))
    }

    /// The run of a plan as if all nodes were of one kind.
    fn run_like(&self, machine: &Arc<NodeModel>, plan: &Plan, software: &Software) -> TrainingRun {
        let strategy = &plan.strategy;
        let layout = ParallelDims {
            tensor: strategy.tensor,
            context: strategy.context,
            data: strategy.data,
            pipeline: strategy.pipeline,
            virtual_stages: strategy.virtual_stages,
            expert: strategy.expert,
            sequence_parallel: strategy.sequence_parallel,
            zero_stage: strategy.zero_stage,
            shard: strategy.shard,
        };
        let recompute = strategy.recompute;
        let micro_batch = strategy.micro_batch;
        TrainingRun {
            layout,
            micro_batch,
            recompute,
            ..self.run_on(machine, &plan.model, &plan.job, software)
        }
    }

    /// Why the prediction of a plan may be off.
    pub fn doubts(&self, plan: &Plan, software: &Software) -> Vec<String> {
        let of = |machine| {
            let run = self.run_like(machine, plan, software);
            let parameters =
                if self.calibration.applies_to(&run) { &self.parameters } else { FreeParameters::shipped() };
            self.calibration.doubts(&run, parameters)
        };
        self.machines.iter().flat_map(of).unique().collect()
    }

    /// The costs of a model and a job with a trainer, and the reference that plans keep of them.
    pub fn costs(
        &self,
        model: &ModelSpec,
        job: &Job,
        software: &Software,
    ) -> (CostModel, CatalogueReference) {
        let runs = self.machines.iter().map(|machine| self.run_on(machine, model, job, software));
        let (mut error_bar, mut error_bar_of) = (0.0, String::new());
        let nodes = self.cluster.node_count();
        let (mut prices, mut kernels) = (Vec::new(), None);
        for (run, kind) in runs.zip(self.cluster.node_kinds()) {
            // The error bar of several kinds is the widest.
            let applies = self.calibration.applies_to(&run);
            let parameters = if applies { &self.parameters } else { FreeParameters::shipped() };
            if !applies {
                let (device, trainer) = (&run.machine.device_name, run.trainer.name());
                let what = if run.block.experts.is_some() { " of a model with experts" } else { "" };
                output::note_once(&format!(
                    "the calibration has no run{what} on {device} with {trainer} in {}: the shipped efficiencies are used for it",
                    run.dtype
                ));
            }
            let (bar, of) = self.calibration.error_bar_of(&run, parameters);
            if bar > error_bar {
                (error_bar, error_bar_of) = (bar, of);
            }
            kernels.get_or_insert_with(|| software.kernels_of(&run));
            prices.push(CataloguePrices::among(&run, nodes, kind.devices, parameters));
        }
        let step = prices[0].step_costs(error_bar.hypot(SIMULATED));
        let classes = DeviceClasses::of(&self.cluster);
        let prices = prices.into_iter().map(|one| Arc::new(one) as Arc<dyn Prices>).collect();
        let costs = CostModel::of_prices(model, job, classes, prices, step);
        let reference = CatalogueReference {
            trainer: software.trainer.name().to_owned(),
            calibration: self.calibration.fitted_to.clone(),
            fingerprint: fingerprint(&self.parameters),
            devices: self.devices(),
            error_bar_of,
            kernels,
        };
        (costs, reference)
    }
}

/// The prices of the catalogue for what a profile of the same devices lacks; `None` if the catalogue does not
/// have these devices.
pub fn beyond(profile: &Profile, cluster: &Cluster) -> Option<Arc<dyn Prices>> {
    let catalogue = Catalogue::shipped();
    let own = &profile.cluster.device().name;
    let known = catalogue.devices().iter().find(|known| known.is_called(own))?;
    let mut named = cluster.clone();
    named.nodes.iter_mut().for_each(|group| group.device.name.clone_from(&known.name));
    let machine = NodeModel::of_nodes(&named, 0, &catalogue).ok()?;
    let trainer = match profile.environment.engine {
        Engine::Native => Trainer::MegatronCore,
        Engine::Torch => Trainer::Fsdp2,
    };
    let run = TrainingRun {
        seq_len: profile.seq_len,
        dtype: profile.precision,
        ..TrainingRun::new(&profile.model, Arc::new(machine), ParallelDims::default(), trainer)
    };
    Some(Arc::new(CataloguePrices::new(&run, cluster.device_count(), FreeParameters::shipped())))
}

/// The kernels that were given for a plan.
fn kernels_in(reference: &CatalogueReference) -> Result<KernelChoice, InputError> {
    let Some(kernels) = &reference.kernels else { return Ok(KernelChoice::default()) };
    let unknown = |field: &str, value: &str, known: &str| {
        InputError::new(format!("cost_source.catalogue.kernels.{field}"), value, "is not a known kernel")
            .hint(format!("expected one of {known}"))
    };
    let attention = kernels.attention.parse::<AttentionChoice>();
    let attention =
        attention.map_err(|_| unknown("attention", &kernels.attention, "unfused, flash, cudnn"))?;
    let loss = kernels.loss.parse::<LossKind>();
    let loss = loss.map_err(|_| unknown("loss", &kernels.loss, "fused, whole"))?;
    let blocks = match kernels.blocks.as_str() {
        "" => None,
        text => Some(text.parse::<BlockKind>().map_err(|_| unknown("blocks", text, "fused, eager"))?),
    };
    Ok(KernelChoice {
        blocks,
        attention: kernels.attention_given.then_some(attention),
        loss: kernels.loss_given.then_some(loss),
    })
}

/// Whether a peak is published for GEMMs in this precision.
fn computes_in(machine: &NodeModel, precision: Precision) -> bool {
    let peak = machine.device.figures().peak(precision.name());
    // A device without bf16 has fp16 in its place.
    precision == Precision::Fp32 || peak.is_some_and(|peak| peak.arithmetic == precision.name())
}
