//! Shared code of the tests of whole programs: strategies of every kind, and programs as text.

pub mod cases;
pub mod text;

use std::fmt::Debug;

/// The name of a value's variant.
pub fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// The values of an enum without fields. A missing variant does not compile.
macro_rules! every {
    ($kind:ident: $($variant:ident),+ $(,)?) => {{
        let complete = |value: $kind| match value {
            $($kind::$variant => value,)+
        };
        [$(complete($kind::$variant)),+]
    }};
}
pub(crate) use every;

/// The names of an enum's variants, with fields or without. A missing variant does not compile.
macro_rules! variants {
    ($kind:ident: $($variant:ident),+ $(,)?) => {{
        let _complete = |value: &$kind| match value {
            $($kind::$variant { .. } => {})+
        };
        vec![$(stringify!($variant)),+]
    }};
}
pub(crate) use variants;
