//! One source per kernel, compiled once per instruction set, which is chosen at run time.

/// A level of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simd {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Simd {
    /// All levels of this processor, widest first.
    pub fn available() -> Vec<Simd> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("fma")
            {
                levels.push(Simd::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Simd::Avx2);
            }
        }
        levels.push(Simd::Plain);
        levels
    }

    pub fn detect() -> Self {
        Self::available()[0]
    }
}

/// Defines functions, generic over [`Real`](super::real::Real), that take a [`Simd`] level before their own
/// arguments. The body is written once and left to the compiler to vectorise under each set of features.
macro_rules! kernels {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident<T>($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        pub fn $name<T: Real>(simd: Simd, $($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body<T: Real>($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
            fn avx512<T: Real>($($argument: $kind),*) $(-> $result)? {
                body($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<T: Real>($($argument: $kind),*) $(-> $result)? {
                body($($argument),*)
            }

            match simd {
                // SAFETY: `Simd` levels come from `Simd::available`, which detects the processor's features.
                #[cfg(target_arch = "x86_64")]
                Simd::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Simd::Avx2 => unsafe { avx2($($argument),*) },
                Simd::Plain => body($($argument),*),
            }
        }
    )*};
}

pub(super) use kernels;
