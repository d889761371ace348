//! The state of GPUs reported by NVML.

use crate::common;

use autodist_cuda::gpus;
use autodist_cuda::nvml::{Health, look};
use autodist_software_gpu::SoftwareGpus;
use common::{libraries, on};

#[test]
fn gpus_are_described_with_what_holds_them_down() {
    on(
        || {
            SoftwareGpus::new()
                .devices(2)
                .set("SOFTWARE_GPU_THROTTLE", "1")
                .set("SOFTWARE_GPU_OTHER_PROCESS", "1")
        },
        || {
            let libraries = libraries();
            let report = look(&libraries, &gpus(&libraries).unwrap()).unwrap();
            assert_eq!(report.health.len(), 2);
            for Health { driver, clock_mhz, highest_clock_mhz, throttled, other_processes, nvlinks, pcie } in
                &report.health
            {
                assert_eq!((driver.as_str(), pcie.as_str(), *nvlinks), ("570.0.0", "4.0 x16", 0));
                assert_eq!((*clock_mhz, *highest_clock_mhz), (Some(705), Some(1410)));
                assert!(throttled.iter().any(|reason| reason == "its temperature"), "{throttled:?}");
                assert_eq!(*other_processes, 1);
            }
            assert_eq!(report.paths.len(), 1);
        },
    );
}

#[test]
fn gpus_at_rest_are_held_down_by_nothing() {
    on(SoftwareGpus::new, || {
        let libraries = libraries();
        let report = look(&libraries, &gpus(&libraries).unwrap()).unwrap();
        assert_eq!((report.health[0].throttled.len(), report.health[0].other_processes), (0, 0));
        assert_eq!(report.health[0].clock_mhz, report.health[0].highest_clock_mhz);
        assert!(report.paths.is_empty());
    });
}

#[test]
fn gpus_are_found_by_identity_where_only_some_are_visible() {
    on(
        || SoftwareGpus::new().devices(3).set("CUDA_VISIBLE_DEVICES", "2"),
        || {
            let libraries = libraries();
            let gpus = gpus(&libraries).unwrap();
            assert_eq!(gpus.len(), 1);
            assert_eq!(gpus[0].ordinal, 0);
            assert!(gpus[0].uuid.ends_with("00000002"), "{}", gpus[0].uuid);
            assert_eq!(gpus[0].pci_bus, "0000:12:00.0");
            assert_eq!(look(&libraries, &gpus).unwrap().health.len(), 1);
        },
    );
}
