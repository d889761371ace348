//! Memory is counted and freed, and copies from and to the device are exact.

use crate::common;

use autodist_codecs::{Compressor, Exchange, PartMut, Tensor, footprint};
use autodist_compute::{Backend, Region, RegionMut};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision::{Bf16, Fp32, Tf32};
use autodist_spec::{Codec, Coded};
use common::{folder, host, on, open};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

const WORKSPACE: usize = 32 << 20;

#[test]
fn what_all_queues_hold_is_counted_with_its_peak() {
    on(SoftwareGpus::new, || {
        let cuda = open(Bf16);
        let other = cuda.queue().unwrap();
        assert_eq!((cuda.live_bytes(), cuda.peak_bytes()), (0, 0));
        let (working, full) = (cuda.zeros(1000), other.zeros_full(1000));
        assert_eq!((working.bytes(), full.bytes()), (2000, 4000));
        assert_eq!((cuda.live_bytes(), other.live_bytes()), (6000, 6000));
        drop(full);
        assert_eq!((cuda.live_bytes(), cuda.peak_bytes()), (2000, 6000));
        assert_eq!(other.reset_peak(), 6000);
        assert_eq!((cuda.live_bytes(), cuda.peak_bytes()), (2000, 2000));
    });
}

#[test]
fn a_queue_has_a_workspace_from_its_first_product_to_its_end() {
    on(SoftwareGpus::new, || {
        let cuda = open(Fp32);
        let other = cuda.queue().unwrap();
        let (factor, mut result) = (other.zeros(4), other.zeros(4));
        let before = cuda.live_bytes();
        for _ in 0..2 {
            let factor = Region::start(&factor).rows(2);
            let to = RegionMut::start(&mut result).rows(2);
            other.matmul(autodist_compute::GemmShape::new(2, 2, 2), 1.0, factor, factor, 0.0, to);
            assert_eq!(cuda.live_bytes(), before + WORKSPACE);
        }
        drop((factor, result, other));
        assert_eq!(cuda.live_bytes(), 0);
    });
}

#[test]
fn the_driver_saw_no_less_memory_in_use_than_was_counted() {
    on(SoftwareGpus::new, || {
        let cuda = open(Fp32);
        drop(cuda.zeros(100_000));
        assert!(cuda.pool_high_water() >= 400_000);
        assert!(cuda.pool_high_water() < 400_000, "each call begins anew");
    });
}

#[test]
fn all_memory_is_given_back_when_queues_and_buffers_are_dropped_in_any_order() {
    let file = folder("memory-left").join("trace");
    on(
        || SoftwareGpus::new().trace(&file),
        || {
            let cuda = open(Fp32);
            let other = cuda.queue().unwrap();
            let buffer = other.zeros(100);
            let scalar = other.sum_of_squares(100, Region::start(&buffer));
            drop(cuda);
            drop(other);
            drop((buffer, scalar));
        },
    );
    let trace = std::fs::read_to_string(&file).unwrap();
    // Worker threads may still write the trace when the process ends.
    assert!(trace.contains(" exit allocations=0 bytes=0\n"), "{trace}");
}

#[test]
fn numbers_are_rounded_alike_on_the_host_and_on_the_gpu() {
    on(SoftwareGpus::new, || {
        let cuda = open(Bf16);
        // Numbers around every step of bf16 in a few binades, and special numbers (zeros, subnormals, the
        // largest number, infinities).
        let near = (0x3f80_0000_u32..0x4180_0000).step_by(0x4000).flat_map(|bits| [bits - 1, bits, bits + 1]);
        let special = [0, 1, 0x8000_0000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x0000_8000, 0x8001_8000];
        let numbers: Vec<f32> = near.chain(special).map(f32::from_bits).collect();
        let by_host = host(&cuda, &cuda.upload(&numbers));
        let full = cuda.upload_full(&numbers);
        assert_eq!(host(&cuda, &full), numbers);
        let mut working = cuda.uninitialised(numbers.len());
        cuda.copy(numbers.len(), Region::start(&full), RegionMut::start(&mut working));
        assert_eq!(host(&cuda, &working), by_host);
        // Ties go to the even neighbour.
        let ties = [f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000)];
        assert_eq!(host(&cuda, &cuda.upload(&ties)), [1.0, f32::from_bits(0x3f82_0000)]);
        assert!(
            host(&cuda, &cuda.upload(&[f32::NAN, f32::from_bits(0x7f80_0001)])).iter().all(|x| x.is_nan())
        );
    });
}

#[test]
fn one_gpu_serves_several_precisions() {
    on(SoftwareGpus::new, || {
        let cuda = open(Fp32);
        let third = [1.0 / 3.0];
        for (precision, mixed) in [(Fp32, false), (Tf32, false), (Bf16, true)] {
            let cuda = cuda.in_precision(precision);
            assert_eq!(cuda.is_mixed(), mixed);
            assert_eq!(host(&cuda, &cuda.upload(&third)) == third, !mixed);
            assert_eq!(host(&cuda, &cuda.upload_full(&third)), third);
        }
    });
}

#[test]
fn all_queues_know_whether_collectives_go_by_nccl() {
    on(SoftwareGpus::new, || {
        let cuda = open(Fp32);
        let other = cuda.queue().unwrap();
        assert!(!other.uses_nccl());
        cuda.use_nccl(true);
        assert!(other.uses_nccl());
    });
}

#[test]
fn regions_that_leave_their_buffer_are_the_callers_mistake() {
    on(SoftwareGpus::new, || {
        let cuda = open(Bf16);
        let mut four = cuda.zeros(4);
        let mut panics = |work: &mut dyn FnMut(RegionMut<'_, _>)| {
            let result = catch_unwind(AssertUnwindSafe(|| work(RegionMut::new(&mut four, 2))));
            *result.unwrap_err().downcast::<String>().unwrap()
        };
        let too_long = "3 elements at 2 of 4";
        assert_eq!(panics(&mut |to| cuda.fill_zero(3, to)), too_long);
        assert_eq!(panics(&mut |to| cuda.scale(3, 2.0, to)), too_long);
        assert_eq!(panics(&mut |to| cuda.write(&[0.0; 3], to)), too_long);
        let full = cuda.zeros_full(4);
        let mixed = panics(&mut |to| cuda.add(2, Region::start(&full), to));
        assert!(mixed.contains("operands of one precision"), "{mixed}");
        cuda.synchronise().unwrap();
    });
}

/// A group of four whose other members send the same data as this one.
struct Echo;

impl Exchange for Echo {
    type Error = Infallible;

    fn size(&self) -> usize {
        4
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&mut self, _: &mut [f32]) -> Result<(), Infallible> {
        Ok(())
    }

    fn max(&mut self, value: f32) -> Result<f32, Infallible> {
        Ok(value)
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![own.to_vec(); 4])
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Infallible> {
        Ok(vec![parts[0].clone(); 4])
    }
}

#[test]
fn codecs_take_the_memory_that_their_footprint_says() {
    const ELEMENTS: usize = 200 * 301 + 77;
    let tensors = [Tensor { offset: 0, rows: 200, columns: 301 }];
    on(SoftwareGpus::new, || {
        let cuda = open(Fp32);
        let mut gradient = cuda.zeros_full(ELEMENTS);
        for codec in Codec::DEFAULTS.into_iter().skip(1) {
            let before = cuda.live_bytes();
            let mut compressor = Compressor::on(&cuda, codec, &tensors, ELEMENTS, 7).after_warmup();
            let expected = footprint(codec, Coded::Gradients, &tensors, ELEMENTS, 4, 0);
            for _ in 0..2 {
                cuda.write(&vec![0.5; ELEMENTS], RegionMut::start(&mut gradient));
                cuda.reset_peak();
                let part = PartMut::new(&mut gradient, 0..ELEMENTS);
                let Ok(_) = compressor.reduce_on(&cuda, part, &mut Echo);
            }
            let (kept, most) = (cuda.live_bytes() - before, cuda.reset_peak() - before);
            assert_eq!(kept as u64, expected.state_bytes, "{}", codec.name());
            let scratch = (most - kept) as u64;
            let room = expected.device_scratch_bytes;
            assert!(scratch <= room && 2 * scratch >= room, "{}: {scratch} of {room}", codec.name());
            drop(compressor);
            assert_eq!(cuda.live_bytes(), before);
        }
        cuda.synchronise().unwrap();
    });
}
