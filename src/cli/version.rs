//! What `--version` says.

use std::sync::LazyLock;

/// Version, commit, features and target; `-V` prints the version alone.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mpi = if cfg!(feature = "mpi") { "mpi" } else { "no mpi (build with --features mpi)" };
        format!(
            "{}\ncommit    {}\nfeatures  cuda (libraries are loaded at run time), {mpi}\ntarget    {}, {}",
            env!("CARGO_PKG_VERSION"),
            option_env!("AUTODIST_COMMIT")
                .filter(|commit| !commit.is_empty())
                .unwrap_or("unknown: not built from a git checkout"),
            env!("AUTODIST_TARGET"),
            if cfg!(debug_assertions) { "debug build" } else { "release build" },
        )
    });
    &TEXT
}
