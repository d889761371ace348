//! `autodist schema`

use crate::cli::{SchemaArgs, SchemaOf};
use crate::failure::Failure;
use crate::output;
use autodist_spec::{Cluster, Job, ModelSpec, Plan, Profile, RunRecord, Validation, to_json};
use schemars::schema_for;

pub fn run(args: &SchemaArgs) -> Result<(), Failure> {
    let schema = match args.what {
        SchemaOf::Model => schema_for!(ModelSpec),
        SchemaOf::Cluster => schema_for!(Cluster),
        SchemaOf::Job => schema_for!(Job),
        SchemaOf::Profile => schema_for!(Profile),
        SchemaOf::Plan => schema_for!(Plan),
        SchemaOf::Run => schema_for!(RunRecord),
        SchemaOf::Validation => schema_for!(Validation),
    };
    output::print(&to_json(&schema))?;
    Ok(())
}
