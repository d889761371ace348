//! Send/recv: any order of sends and receives completes.

use crate::common;

use autodist_communication::{CommunicationError, Counters};
use common::{TIMEOUT, any_transport, bits, job, transports, values};
use proptest::prelude::*;

#[test]
fn tags_may_be_received_in_any_order() {
    for over in transports() {
        job(over, 2, TIMEOUT, |mut endpoint| {
            let peer = 1 - endpoint.rank();
            let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
            for tag in 0..50 {
                mailbox.send(peer, tag, values(tag as usize, 10 + tag as usize)).unwrap();
            }
            for tag in (0..50).rev() {
                let got = mailbox.receive(peer, tag).unwrap();
                assert_eq!(bits(&got), bits(&values(tag as usize, 10 + tag as usize)));
            }
            let bytes = (0..50).map(|tag| 4 * (10 + tag)).sum();
            mailbox.close().unwrap();
            bytes
        })
        .into_iter()
        .for_each(|bytes: u64| assert_eq!(bytes, 6900));
    }
}

#[test]
fn one_tag_keeps_its_order() {
    job(any_transport(), 2, TIMEOUT, |mut endpoint| {
        let peer = 1 - endpoint.rank();
        let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
        for value in 0..20 {
            mailbox.send(peer, value % 2, vec![value as f32]).unwrap();
        }
        for tag in [1, 0] {
            for turn in 0..10 {
                assert_eq!(mailbox.receive(peer, tag).unwrap(), [(2 * turn + tag) as f32]);
            }
        }
        mailbox.close().unwrap();
    });
}

#[test]
fn large_messages_pass_each_other() {
    const LENGTH: usize = 4 << 20;
    for over in transports() {
        job(over, 2, TIMEOUT, |mut endpoint| {
            let (rank, peer) = (endpoint.rank(), 1 - endpoint.rank());
            let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
            mailbox.record_sends(true);
            for tag in 0..3 {
                mailbox.send(peer, tag, vec![rank as f32 + tag as f32; LENGTH]).unwrap();
            }
            for tag in [2, 0, 1] {
                let got = mailbox.receive(peer, tag).unwrap();
                assert_eq!(got.len(), LENGTH);
                assert!(got.iter().all(|&value| value == peer as f32 + tag as f32));
            }
            // The peer has received everything, or it would not have sent its last message; our thread may
            // lag behind.
            while mailbox.counters().sent < 3 * 4 * LENGTH as u64 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let moved = 3 * 4 * LENGTH as u64;
            assert_eq!(mailbox.counters(), Counters { sent: moved, received: moved });
            let records = mailbox.take_send_records();
            assert_eq!(records.iter().map(|record| record.tag).collect::<Vec<_>>(), [0, 1, 2]);
            for record in records {
                assert!(record.queued <= record.started && record.started <= record.ended);
                assert_eq!((record.peer, record.bytes), (peer, 4 * LENGTH as u64));
            }
            mailbox.close().unwrap();
        });
    }
}

/// A pipeline: every rank sends forward and then backward before any rank receives.
#[test]
fn a_chain_of_stages() {
    for over in transports() {
        job(over, 4, TIMEOUT, |mut endpoint| {
            let rank = endpoint.rank();
            let peers: Vec<_> = [rank.checked_sub(1), Some(rank + 1).filter(|&next| next < 4)]
                .into_iter()
                .flatten()
                .collect();
            let mut mailbox = endpoint.point_to_point("stages", &peers).unwrap();
            assert_eq!(mailbox.peers(), peers);
            for &peer in &peers {
                mailbox.send(peer, 7, vec![rank as f32; 300_000]).unwrap();
                mailbox.send(peer, 8, Vec::new()).unwrap();
            }
            for &peer in peers.iter().rev() {
                assert!(mailbox.receive(peer, 8).unwrap().is_empty());
                assert_eq!(mailbox.receive(peer, 7).unwrap(), vec![peer as f32; 300_000]);
            }
            mailbox.close().unwrap();
        });
    }
}

#[test]
fn a_lost_peer_surfaces_at_the_sender_too() {
    for over in transports() {
        job(over, 2, TIMEOUT, |mut endpoint| {
            let (rank, peer) = (endpoint.rank(), 1 - endpoint.rank());
            let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
            if rank == 1 {
                return;
            }
            let error = loop {
                if let Err(error) = mailbox.send(peer, 0, vec![0.0; 100_000]) {
                    break error;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            };
            assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{error}");
            assert_eq!(error.accused_rank(), Some(1));
            assert!(mailbox.receive(peer, 0).is_err());
            assert!(mailbox.close().is_err());
        });
    }
}

#[test]
fn strangers_have_no_mailbox() {
    job(any_transport(), 2, TIMEOUT, |mut endpoint| {
        let (rank, peer) = (endpoint.rank(), 1 - endpoint.rank());
        assert!(endpoint.point_to_point("self", &[rank]).is_err());
        assert!(endpoint.point_to_point("far", &[2]).is_err());
        let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
        let error = mailbox.send(rank, 0, Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), format!("send on `stages` names {rank}, but the lane has [{peer}]"));
        mailbox.close().unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_schedule_gets_through(
        lengths in proptest::collection::vec(0usize..40_000, 1..12),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 12),
    ) {
        job(any_transport(), 2, TIMEOUT, |mut endpoint| {
            let peer = 1 - endpoint.rank();
            let mut mailbox = endpoint.point_to_point("stages", &[peer]).unwrap();
            for (tag, &length) in lengths.iter().enumerate() {
                mailbox.send(peer, tag as u64, vec![tag as f32; length]).unwrap();
            }
            let mut left: Vec<_> = (0..lengths.len()).collect();
            for choice in &order {
                if left.is_empty() {
                    break;
                }
                let tag = left.remove(choice.index(left.len()));
                assert_eq!(mailbox.receive(peer, tag as u64).unwrap(), vec![tag as f32; lengths[tag]]);
            }
            mailbox.close().unwrap();
        });
    }
}

#[cfg(feature = "mpi")]
#[test]
fn over_mpi() {
    common::mpi::again(4, "mailboxes::");
}
