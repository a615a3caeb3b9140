//! Both back ends, and the ring without its optional flags: the same scenarios.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::socket::set_option;
use super::*;
use crate::types::Ecn;

const BUFFERS: SocketBuffers = SocketBuffers { receive: 2 << 20, send: 2 << 20 };
const PATIENCE: Duration = Duration::from_secs(5);

struct Bed {
    io: Box<dyn Io>,
    wake: Arc<WakeWord>,
    here: SocketAddr,
    port: Port,
    /// A plain socket to talk to.
    far: UdpSocket,
}

type Start = fn(Arc<WakeWord>, IoLimits) -> Box<dyn Io>;

/// Runs `scenario` on each, with one open port.
fn each(limits: IoLimits, ip: &str, scenario: impl Fn(&mut Bed)) {
    let variants: [Start; 3] = [
        |wake, limits| Backend::Ring.start(wake, limits).unwrap(),
        |wake, limits| Box::new(RingIo::without_flags(wake, limits).unwrap()),
        |wake, limits| Backend::Syscalls.start(wake, limits).unwrap(),
    ];
    for start in variants {
        let wake = Arc::new(WakeWord::new().unwrap());
        let mut io = start(Arc::clone(&wake), limits);
        let any = format!("{ip}:0").parse().unwrap();
        let (socket, _) = bind(any, BUFFERS).unwrap();
        let here = socket.local_addr().unwrap();
        let port = io.open(socket).unwrap();
        let (far, _) = bind(any, BUFFERS).unwrap();
        scenario(&mut Bed { io, wake, here, port, far });
    }
}

fn each_default(scenario: impl Fn(&mut Bed)) {
    each(IoLimits::default(), "127.0.0.1", scenario);
}

fn tiny(buffers: usize) -> IoLimits {
    IoLimits {
        receive_buffers: buffers,
        send_buffers: buffers,
        send_buffers_per_port: 0,
        max_ports: 4,
        ..IoLimits::default()
    }
}

impl Bed {
    fn transmit(&self, to: SocketAddr, segment: usize, len: usize) -> Transmit {
        Transmit { to, ecn: None, segment, len }
    }

    fn queue(&mut self, transmit: &Transmit) {
        let mut buffer = self.io.take_buffer().unwrap();
        buffer.extend((0..transmit.len).map(|at| (at / transmit.segment) as u8));
        self.io.send(self.port, transmit, buffer);
    }

    fn far_address(&self) -> SocketAddr {
        self.far.local_addr().unwrap()
    }

    /// A park that something other than the time must end.
    fn park(&mut self) {
        let start = Instant::now();
        self.io.park(Some(PATIENCE)).unwrap();
        assert!(start.elapsed() < PATIENCE, "nothing ended it");
    }

    /// Turns the loop until `done`.
    fn run_until(&mut self, mut done: impl FnMut(&mut Bed) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "too late: {:?}", self.io.counters());
            self.io.park(Some(Duration::from_millis(5))).unwrap();
        }
    }

    fn run_until_woken(&mut self) {
        let before = self.io.counters().wakes;
        while self.io.counters().wakes == before {
            self.io.receive(1, &mut |_, _| {});
            self.park();
        }
        self.wake.unpark();
    }

    /// Turns the loop until `bytes` arrived.
    fn receive_bytes(&mut self, bytes: usize) -> Vec<Received> {
        let mut batches: Vec<Received> = Vec::new();
        self.run_until(|bed| {
            bed.io.receive(64, &mut |_, batch| batches.push(batch));
            batches.iter().map(|batch| batch.data.len()).sum::<usize>() >= bytes
        });
        batches
    }
}

/// Sets a socket's receive timeout and returns the datagrams it gets within it.
fn drain_far(far: &UdpSocket) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(len) = far.recv(&mut buffer) {
        datagrams.push(buffer[..len].to_vec());
    }
    datagrams
}

#[test]
fn a_datagram_arrives_with_its_sender_and_alone() {
    each_default(|bed| {
        bed.far.send_to(b"hello", bed.here).unwrap();
        let batches = bed.receive_bytes(5);
        assert_eq!((batches.len(), &batches[0].data[..], batches[0].stride), (1, &b"hello"[..], 5));
        assert_eq!((batches[0].from, batches[0].ecn), (bed.far_address(), None));
        // Copied out: a small datagram pins no large buffer.
        assert!(batches[0].data.capacity() < 1024);
    });
}

#[test]
fn joined_sends_are_split_and_joined_again() {
    for (segment, len) in
        [(1200, 1200 * 44), (1452, 1452 * 10 + 7), (1452, 65_340), (8900, 8900 * 7), (100, 100 * 64)]
    {
        each_default(|bed| {
            let transmit = bed.transmit(bed.here, segment, len);
            bed.queue(&transmit);
            let batches = bed.receive_bytes(len);
            let datagrams: Vec<&[u8]> = batches.iter().flat_map(|b| b.data.chunks(b.stride)).collect();
            assert_eq!(datagrams.len(), len.div_ceil(segment));
            for (number, datagram) in datagrams.iter().enumerate() {
                assert!(datagram.iter().all(|byte| *byte == number as u8));
            }
            let counters = bed.io.counters();
            assert_eq!((counters.sends, counters.bytes_out), (1, len as u64));
            assert_eq!((counters.datagrams_in, counters.bytes_in), (datagrams.len() as u64, len as u64));
        });
    }
}

#[test]
fn a_large_batch_is_handed_over_and_its_place_taken() {
    each(tiny(2), "127.0.0.1", |bed| {
        let mut kept = Vec::new();
        for _ in 0..10 {
            let transmit = bed.transmit(bed.here, 1452, 1452 * 40);
            bed.queue(&transmit);
            kept.extend(bed.receive_bytes(transmit.len));
        }
        assert!(kept.iter().all(|batch| batch.data[..1452].iter().all(|byte| *byte == 0)));
        assert_eq!(kept.iter().map(|batch| batch.data.len()).sum::<usize>(), 10 * 1452 * 40);
    });
}

#[test]
fn congestion_marks_travel_both_families() {
    for ip in ["127.0.0.1", "[::1]"] {
        each(IoLimits::default(), ip, |bed| {
            for ecn in [Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
                let transmit = Transmit { ecn: Some(ecn), ..bed.transmit(bed.here, 1000, 20_000) };
                bed.queue(&transmit);
                let batches = bed.receive_bytes(transmit.len);
                assert!(batches.iter().all(|batch| batch.ecn == Some(ecn) && batch.from == bed.here));
            }
        });
    }
}

#[test]
fn an_empty_datagram_is_discarded_and_the_next_arrives() {
    each_default(|bed| {
        bed.far.send_to(b"", bed.here).unwrap();
        bed.far.send_to(b"x", bed.here).unwrap();
        assert_eq!(&bed.receive_bytes(1)[0].data[..], b"x");
        assert_eq!(bed.io.counters().discarded_in, 1);
    });
}

#[test]
fn more_bursts_than_buffers_are_all_received() {
    each(tiny(2), "127.0.0.1", |bed| {
        for number in 0..100u8 {
            bed.far.send_to(&[number; 100], bed.here).unwrap();
        }
        let batches = bed.receive_bytes(100 * 100);
        let numbers: Vec<u8> = batches.iter().map(|batch| batch.data[0]).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<u8>>());
    });
}

#[test]
fn ports_that_share_few_buffers_take_turns() {
    each(tiny(2), "127.0.0.1", |bed| {
        let mut ports = vec![(bed.port, bed.here)];
        for _ in 0..2 {
            let (socket, _) = bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap();
            let here = socket.local_addr().unwrap();
            ports.push((bed.io.open(socket).unwrap(), here));
        }
        for (_, here) in &ports {
            (0..60).for_each(|_| drop(bed.far.send_to(&[7; 100], here)));
        }
        let mut arrived = [0; 3];
        while arrived.iter().sum::<usize>() < 120 {
            bed.io.park(Some(PATIENCE)).unwrap();
            bed.io.receive(usize::MAX, &mut |port, _| {
                let at = ports.iter().position(|(open, _)| *open == port).unwrap();
                arrived[at] += 1;
            });
        }
        assert!(arrived.iter().all(|count| *count >= 20), "{arrived:?}");
    });
}

#[test]
fn buffers_that_were_read_are_used_again() {
    let wake = Arc::new(WakeWord::new().unwrap());
    let mut io = Backend::Ring.start(wake, tiny(2)).unwrap();
    let (socket, _) = bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap();
    let here = socket.local_addr().unwrap();
    let port = io.open(socket).unwrap();
    let (mut places, mut held) = (std::collections::BTreeSet::new(), Vec::new());
    for round in 0..40 {
        let mut buffer = io.take_buffer().unwrap();
        buffer.resize(1452 * 40, round);
        io.send(port, &Transmit { to: here, ecn: None, segment: 1452, len: buffer.len() }, buffer);
        let mut arrived = 0;
        while arrived < 1452 * 40 {
            io.park(Some(PATIENCE)).unwrap();
            io.receive(64, &mut |_, batch| {
                arrived += batch.data.len();
                assert!(batch.data.iter().all(|byte| *byte == round));
                places.insert(batch.data.as_ptr() as usize);
                // Who holds one keeps it as it is.
                if round % 8 == 0 {
                    held.push((round, batch.data));
                }
            });
        }
    }
    assert!(held.iter().all(|(round, data)| data.iter().all(|byte| byte == round)));
    assert!(places.len() <= 3 + held.len(), "{} places for 40 batches", places.len());
}

#[test]
fn a_limit_leaves_the_rest_for_the_next_call() {
    each_default(|bed| {
        for number in 0..10u8 {
            bed.far.send_to(&[number], bed.here).unwrap();
        }
        let mut got = Vec::new();
        bed.run_until(|bed| {
            assert!(bed.io.receive(3, &mut |_, batch| got.push(batch.data[0])) <= 3);
            got.len() == 10
        });
        assert_eq!(got, (0..10).collect::<Vec<u8>>());
    });
}

#[test]
fn the_pool_pushes_back_and_recovers() {
    each(tiny(3), "127.0.0.1", |bed| {
        let transmit = bed.transmit(bed.far_address(), 1000, 1000);
        (0..3).for_each(|_| bed.queue(&transmit));
        assert_eq!(bed.io.take_buffer(), None);
        bed.run_until(|bed| {
            bed.io.receive(1, &mut |_, _| {});
            bed.io.take_buffer().map(|buffer| bed.io.return_buffer(buffer)).is_some()
        });
        (0..3).for_each(|_| bed.queue(&transmit));
        bed.run_until(|bed| bed.io.counters().sends == 6);
        assert_eq!(drain_far(&bed.far).len(), 6);
        assert!(bed.io.counters().send_buffers_exhausted >= 1);
    });
}

#[test]
fn a_refused_send_is_counted_and_the_port_goes_on() {
    each_default(|bed| {
        // Broadcast needs a right that the socket has not asked for.
        let broadcast = bed.transmit("255.255.255.255:9".parse().unwrap(), 100, 100);
        bed.queue(&broadcast);
        bed.run_until(|bed| bed.io.counters().send_errors.denied == 1);
        let transmit = bed.transmit(bed.far_address(), 65_507, 65_507);
        bed.queue(&transmit);
        bed.run_until(|bed| bed.io.counters().sends == 1);
    });
}

#[test]
fn datagrams_above_the_mtu_are_too_large_joined_or_not() {
    each(IoLimits::default(), "[::1]", |bed| {
        bed.io.close(bed.port);
        let (socket, _) = bind("[::1]:0".parse().unwrap(), BUFFERS).unwrap();
        set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU, 1280).unwrap();
        bed.port = bed.io.open(socket).unwrap();
        for len in [2000, 20_000] {
            let transmit = bed.transmit(bed.far_address(), 2000, len);
            bed.queue(&transmit);
        }
        bed.run_until(|bed| bed.io.counters().send_errors.too_large == 2);
        let transmit = bed.transmit(bed.far_address(), 1200, 12_000);
        bed.queue(&transmit);
        bed.run_until(|bed| bed.io.counters().sends == 1);
        assert_eq!((bed.io.counters().gso_suspensions, drain_far(&bed.far).concat().len()), (0, 12_000));
    });
}

#[test]
fn the_other_family_is_unreachable() {
    each_default(|bed| {
        let transmit = bed.transmit("[::1]:9".parse().unwrap(), 100, 100);
        bed.queue(&transmit);
        bed.run_until(|bed| bed.io.counters().send_errors.unreachable == 1);
    });
}

/// Without checksums the kernel refuses to segment: a joined send answers EINVAL, single ones pass.
fn forbid_segmentation(bed: &mut Bed) {
    bed.io.close(bed.port);
    let (socket, _) = bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap();
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    bed.port = bed.io.open(socket).unwrap();
}

#[test]
fn without_segmentation_the_datagrams_go_one_by_one() {
    each_default(|bed| {
        forbid_segmentation(bed);
        let transmit = bed.transmit(bed.far_address(), 1000, 5500);
        for _ in 0..5 {
            bed.queue(&transmit);
            bed.io.park(Some(Duration::ZERO)).unwrap();
        }
        bed.run_until(|bed| bed.io.counters().datagrams_out == 30);
        let counters = bed.io.counters();
        // Three failures, then it stops trying for a while.
        assert_eq!((counters.gso_fallbacks, counters.gso_suspensions), (3, 1));
        assert_eq!((counters.bytes_out, counters.send_errors.total()), (5 * 5500, 0));
        let lengths: Vec<usize> = drain_far(&bed.far).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1000, 1000, 1000, 1000, 1000, 500].repeat(5));
    });
}

#[test]
fn nothing_is_delivered_after_close() {
    each_default(|bed| {
        for _ in 0..50 {
            bed.far.send_to(b"early", bed.here).unwrap();
        }
        assert!(bed.io.receive(1, &mut |_, _| {}) <= 1);
        bed.io.close(bed.port);
        for _ in 0..5 {
            assert_eq!(bed.io.receive(64, &mut |_, _| panic!("delivered")), 0);
            bed.io.park(Some(Duration::from_millis(1))).unwrap();
        }
        // The socket is gone, its address free.
        bed.run_until(|bed| UdpSocket::bind(bed.here).is_ok());
    });
}

#[test]
fn closing_with_sends_on_their_way_gives_every_buffer_back() {
    each(tiny(4), "127.0.0.1", |bed| {
        let transmit = bed.transmit(bed.far_address(), 1000, 60_000);
        (0..4).for_each(|_| bed.queue(&transmit));
        bed.io.close(bed.port);
        let mut buffers = Vec::new();
        bed.run_until(|bed| {
            bed.io.receive(1, &mut |_, _| {});
            buffers.extend(bed.io.take_buffer());
            buffers.len() == 4
        });
    });
}

#[test]
fn a_port_opens_again_after_close() {
    each(tiny(2), "127.0.0.1", |bed| {
        for _ in 0..20 {
            bed.io.close(bed.port);
            bed.io.close(bed.port);
            bed.io.park(Some(Duration::ZERO)).unwrap();
            let (socket, _) = bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap();
            bed.here = socket.local_addr().unwrap();
            bed.port = bed.io.open(socket).unwrap();
            bed.far.send_to(b"again", bed.here).unwrap();
            assert_eq!(&bed.receive_bytes(5)[0].data[..], b"again");
        }
    });
}

#[test]
fn too_many_ports_are_refused() {
    each(tiny(2), "127.0.0.1", |bed| {
        let open = |bed: &mut Bed| bed.io.open(bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap().0);
        assert!((0..3).all(|_| open(bed).is_ok()));
        assert_eq!(open(bed).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    });
}

#[test]
fn many_ports_are_served_and_told_apart() {
    each_default(|bed| {
        let sockets: Vec<_> =
            (0..40).map(|_| bind("127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap().0).collect();
        let mut expected = Vec::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            bed.far.send_to(&[number as u8], socket.local_addr().unwrap()).unwrap();
            expected.push((bed.io.open(socket).unwrap(), number as u8));
        }
        let mut got = Vec::new();
        bed.run_until(|bed| {
            bed.io.receive(7, &mut |port, batch| got.push((port, batch.data[0])));
            got.len() == 40
        });
        got.sort_unstable();
        assert_eq!(got, expected);
    });
}

#[test]
fn a_park_ends_when_its_time_is_up() {
    each_default(|bed| {
        let start = Instant::now();
        bed.run_until(|_| start.elapsed() >= Duration::from_millis(20));
        bed.io.park(Some(Duration::ZERO)).unwrap();
    });
}

#[test]
fn a_park_is_ended_by_the_wake_word() {
    each_default(|bed| {
        for _ in 0..50 {
            bed.wake.prepare_park();
            let wake = Arc::clone(&bed.wake);
            let waker = thread::spawn(move || wake.wake());
            bed.run_until_woken();
            waker.join().unwrap();
        }
    });
}

#[test]
fn a_wake_that_another_call_reaped_still_ends_the_park() {
    each_default(|bed| {
        // Arms what waits for the wake.
        bed.io.park(Some(Duration::ZERO)).unwrap();
        for _ in 0..50 {
            bed.wake.prepare_park();
            bed.wake.wake();
            bed.io.receive(1, &mut |_, _| {});
            bed.io.flush().unwrap();
            bed.park();
            bed.wake.unpark();
        }
    });
}

#[test]
fn a_park_is_ended_by_a_datagram() {
    each_default(|bed| {
        let (far, here) = (bed.far.try_clone().unwrap(), bed.here);
        let sender = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            far.send_to(b"x", here).unwrap()
        });
        let mut got = 0;
        while got == 0 {
            bed.park();
            got = bed.io.receive(1, &mut |_, _| {});
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_park_does_not_sleep_over_what_has_arrived() {
    each_default(|bed| {
        bed.io.flush().unwrap();
        bed.far.send_to(b"x", bed.here).unwrap();
        let mut got = 0;
        while got == 0 {
            bed.park();
            got += bed.io.receive(1, &mut |_, _| {});
        }
    });
}

#[test]
fn dropping_with_everything_on_its_way_is_safe() {
    each(tiny(8), "127.0.0.1", |bed| {
        let transmit = bed.transmit(bed.here, 1000, 60_000);
        (0..8).for_each(|_| bed.queue(&transmit));
        bed.io.park(Some(Duration::ZERO)).unwrap();
    });
}

#[test]
fn the_ring_works_here() {
    RingIo::probe().unwrap();
}
