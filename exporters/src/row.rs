//! How one field of a plan is said to one trainer, and what is done about fields that it has no setting for.

use crate::document::Document;
use crate::launch::Machines;
use crate::settings::{Field, Settings};
use autodist_spec::{InputError, Precision};
use std::fmt;

/// One field of a plan in a trainer's words, in both directions.
pub struct Row {
    pub field: Field,
    /// The trainer's names for it.
    pub theirs: &'static str,
    pub write: fn(&Settings, &mut Draft),
    /// Whether the document says it; rows are read in order, so that a later one may stand on earlier ones.
    pub read: fn(&Document, &mut Settings) -> Result<bool, InputError>,
}

/// A field that a trainer has no setting for, and what then.
#[derive(Clone, Copy)]
pub struct Lack {
    pub field: Field,
    pub otherwise: Otherwise,
}

#[derive(Clone, Copy)]
pub enum Otherwise {
    /// Without it the plan is another one.
    Refuse { why: &'static str, way_out: &'static str },
    /// What is done in its place.
    Instead(&'static str),
}

/// What a trainer was not told, and what it does instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub field: Field,
    pub value: String,
    pub instead: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.field.name(), self.value, self.instead)
    }
}

/// A configuration in the making.
pub struct Draft<'a> {
    settings: &'a Settings,
    pub machines: Machines,
    pub document: Document,
    pub notes: Vec<Note>,
    pub refusals: Vec<InputError>,
}

impl<'a> Draft<'a> {
    pub fn new(settings: &'a Settings, machines: Machines) -> Self {
        Self { settings, machines, document: Document::default(), notes: Vec::new(), refusals: Vec::new() }
    }

    pub fn set(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.document.set(key, value);
    }

    /// Something else is used than the plan says.
    pub fn instead(&mut self, field: Field, what: impl Into<String>) {
        let note = Note { field, value: self.settings.show(field), instead: what.into() };
        self.notes.push(note);
    }

    pub fn refuse(&mut self, field: Field, why: impl Into<String>, way_out: impl Into<String>) {
        self.refusals
            .push(InputError::new(field.name(), self.settings.show(field), why).hint(way_out.into()));
    }

    pub(crate) fn lack(&mut self, lack: &Lack) {
        if self.settings.does_without(lack.field) {
            return;
        }
        match lack.otherwise {
            Otherwise::Refuse { why, way_out } => self.refuse(lack.field, why, way_out),
            Otherwise::Instead(what) => self.instead(lack.field, what),
        }
    }
}

pub const fn refuse(field: Field, why: &'static str, way_out: &'static str) -> Lack {
    Lack { field, otherwise: Otherwise::Refuse { why, way_out } }
}

pub const fn instead(field: Field, what: &'static str) -> Lack {
    Lack { field, otherwise: Otherwise::Instead(what) }
}

pub const PARAMETERS_AS_THEY_ARE: Lack = refuse(
    Field::Parameters,
    "gathered parameters travel in the training's precision",
    "plan without parameter_codecs",
);

pub const ACTIVATIONS_AS_THEY_ARE: Lack = refuse(
    Field::Activations,
    "activations travel in the training's precision",
    "plan without activation_codecs",
);

/// A trainer without pipelines.
pub const NO_PIPELINE: [Lack; 4] = [
    refuse(Field::Pipeline, "there are no pipelines in its configuration", "plan with --pp 1"),
    refuse(Field::VirtualStages, "there are no pipelines in its configuration", "plan with --pp 1"),
    refuse(Field::Schedule, "there are no pipelines in its configuration", "plan with --pp 1"),
    refuse(Field::Stages, "there are no pipelines in its configuration", "plan with --pp 1"),
];

/// A row for a value under one key, that `$read` of a document finds.
macro_rules! keyed {
    ($read:ident, $field:ident, $member:ident, $key:literal) => {
        crate::row::Row {
            field: crate::settings::Field::$field,
            theirs: $key,
            write: |settings, draft| draft.set($key, settings.$member),
            read: |document, settings| {
                let found = document.$read($key)?;
                settings.$member = found.unwrap_or(settings.$member);
                Ok(found.is_some())
            },
        }
    };
}

/// A row for a whole number under one key.
macro_rules! count {
    ($field:ident, $member:ident, $key:literal) => {
        crate::row::keyed!(count, $field, $member, $key)
    };
}

/// A row for a real number under one key.
macro_rules! real {
    ($field:ident, $member:ident, $key:literal) => {
        crate::row::keyed!(real, $field, $member, $key)
    };
}

/// A row for the seed under one key.
macro_rules! seed {
    ($key:literal) => {
        crate::row::Row {
            field: crate::settings::Field::Seed,
            theirs: $key,
            write: |settings, draft| draft.set($key, settings.seed),
            read: |document, settings| {
                let found = document.count($key)?;
                settings.seed = u64::from(found.unwrap_or(0));
                Ok(found.is_some())
            },
        }
    };
}

/// A row for a key that says whether all blocks are recomputed whole.
macro_rules! full_recompute {
    ($key:literal) => {
        crate::row::Row {
            field: crate::settings::Field::Recompute,
            theirs: $key,
            write: |settings, draft| {
                let full = crate::stages::uniform_recompute(settings, draft, false) == Recompute::Full;
                draft.set($key, full);
            },
            read: |document, settings| {
                let full = document.flag($key)?.unwrap_or(false);
                let mode = if full { Recompute::Full } else { Recompute::None };
                settings.recompute = vec![mode; settings.blocks() as usize];
                Ok(settings.blocks() > 0)
            },
        }
    };
}

/// fp16 with a loss scale, as trainers have it, is no arithmetic of plans.
///
/// # Errors
/// If the key is true.
pub fn refuse_fp16(document: &Document, key: &str) -> Result<(), InputError> {
    if document.flag(key)?.unwrap_or(false) {
        return Err(InputError::new(key, "true", "is an arithmetic that plans do not have")
            .hint("give bf16, which takes as long"));
    }
    Ok(())
}

/// Where a trainer has no setting for tf32.
pub fn note_tf32(settings: &Settings, draft: &mut Draft) {
    if settings.precision == Precision::Tf32 {
        draft.instead(Field::Precision, "fp32 in these files; set NVIDIA_TF32_OVERRIDE=1 for the processes");
    }
}

pub(crate) use {count, full_recompute, keyed, real, seed};
