use super::*;

const A: PeerIndex = PeerIndex(0);
const B: PeerIndex = PeerIndex(1);
const C: PeerIndex = PeerIndex(2);
const TOPIC: TopicId = TopicId(1);
const SIZE: u32 = 100;

fn id(byte: u8) -> ArtifactId {
    ArtifactId([byte; 32])
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn cancel(peer: PeerIndex, request: Request) -> FetchEffect {
    FetchEffect::Cancel { peer, key: request.key }
}

/// Fetches of a lane with three connected peers, and the effects so far.
struct World {
    fetch: Fetch,
    fx: Vec<FetchEffect>,
}

fn limits() -> FetchLimits {
    FetchLimits {
        peers: 3,
        per_peer: PerClass([2; 4]),
        per_peer_bytes: PerClass([1000; 4]),
        lane_bytes: PerClass([2000; 4]),
        hedge_min: Duration::from_millis(20),
        hedge_max: Duration::from_secs(2),
        explore_one_in: 0,
    }
}

fn world_of(limits: FetchLimits) -> World {
    let mut fetch = Fetch::new(limits, Rng::new(1));
    [A, B, C].into_iter().for_each(|peer| fetch.handle_connected(peer));
    World { fetch, fx: Vec::new() }
}

fn world() -> World {
    world_of(limits())
}

impl World {
    fn want(&mut self, byte: u8, class: Class, size: u32, peers: &[PeerIndex], now: Instant) {
        self.fetch.handle_wanted(TOPIC, id(byte), class, None, now);
        for peer in peers {
            self.fetch.handle_advertiser(TOPIC, id(byte), *peer, size);
        }
    }

    fn next(&mut self, peer: PeerIndex, now: Instant) -> Option<Request> {
        Class::ALL.into_iter().find_map(|class| self.fetch.next_request(peer, class, now))
    }

    /// The id's first byte of the next request.
    fn next_byte(&mut self, peer: PeerIndex, now: Instant) -> Option<u8> {
        self.next(peer, now).map(|request| request.id.0[0])
    }

    fn reply(&mut self, peer: PeerIndex, request: Request, outcome: Outcome, now: Instant) {
        let answered = self.fetch.handle_reply(peer, request.key, outcome, now, &mut self.fx);
        assert_eq!(answered, Some((request.topic, request.id)));
        self.check();
    }

    /// Lets time pass up to `until`, timer by timer.
    fn pass(&mut self, until: Instant) {
        for _ in 0..1000 {
            match self.fetch.poll_timeout() {
                Some((at, _)) if at <= until => {
                    self.fetch.handle_timeout(at.max(self.fetch.now), &mut self.fx)
                }
                _ => return self.fetch.handle_timeout(until, &mut self.fx),
            }
        }
        panic!("timers do not come to rest");
    }

    /// Measures a peer: it answers one request after `ms`.
    fn measure(&mut self, peer: PeerIndex, ms: u64) {
        let now = self.fetch.now;
        self.want(200, Class::High, 1, &[peer], now);
        let request = self.next(peer, now).expect("a request");
        self.reply(peer, request, Outcome::Found, now + Duration::from_millis(ms));
    }

    /// What the caller has to do, but for word of who serves and who does not.
    fn effects(&mut self) -> Vec<FetchEffect> {
        let mut effects = std::mem::take(&mut self.fx);
        effects.retain(|effect| matches!(effect, FetchEffect::Cancel { .. } | FetchEffect::Fault { .. }));
        effects
    }

    /// The books agree with one another.
    fn check(&self) {
        let fetch = &self.fetch;
        for class in Class::ALL {
            let mut lane = Load::default();
            for peer in &fetch.peers {
                let flights = peer.flights.iter().map(|(key, slot)| {
                    let task = &fetch.tasks[*slot];
                    (task, task.flights.iter().find(|flight| flight.key == *key).expect("in both books"))
                });
                let mut load = Load::default();
                for (_, flight) in flights.filter(|(task, _)| task.class == class) {
                    load.add(flight.size);
                    // The lane's bytes are for those who answer.
                    if !flight.blamed {
                        lane.add(flight.size);
                    }
                }
                assert_eq!(peer.load[class], load);
                let tickets = &peer.queues[class].tickets;
                assert!(peer.queues[class].stale <= tickets.len());
            }
            assert_eq!(fetch.lane[class], lane);
        }
        for (slot, task) in &fetch.tasks {
            assert!(task.flights.len() <= task::MAX_FLIGHTS);
            let timer = task.wake.map(|(at, _)| (at, Timer::Task(slot)));
            assert!(timer.is_none_or(|timer| fetch.timers.contains(&timer)));
        }
        assert_eq!(fetch.by_id.len(), fetch.tasks.len());
    }
}

#[test]
fn one_artifact_is_asked_for_once_however_many_advertise_it() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B, C], at(0));
    let request = world.next(A, at(0)).unwrap();
    assert_eq!((request.topic, request.id, request.size), (TOPIC, id(1), SIZE));
    assert!(request.key.0 >= FETCH_KEYS);
    assert_eq!((world.next(B, at(0)), world.next(A, at(0))), (None, None));
    world.reply(A, request, Outcome::Found, at(5));
    assert!(world.fetch.is_empty() && !world.fetch.is_wanted(TOPIC, &id(1)));
    assert_eq!(world.fetch.in_flight(Class::High), (0, 0));
    assert_eq!(world.effects(), []);
    assert_eq!(world.fetch.poll_timeout(), None);
}

#[test]
fn not_found_moves_on_to_another_at_once() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    let request = world.next(A, at(0)).unwrap();
    assert!(world.next(B, at(0)).is_none());
    world.reply(A, request, Outcome::NotFound, at(1));
    assert!(world.next(A, at(1)).is_none(), "the one that failed waits");
    assert_eq!(world.next_byte(B, at(1)), Some(1));
}

#[test]
fn when_all_have_failed_they_are_asked_again_after_a_growing_pause() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A], at(0));
    let mut now = at(0);
    for pause in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
        let request = world.next(A, now).unwrap();
        world.reply(A, request, Outcome::NotFound, now);
        let (due, why) = world.fetch.poll_timeout().unwrap();
        assert_eq!((due.saturating_since(now), why), (Duration::from_millis(pause), "fetch retry"));
        assert!(world.next(A, now).is_none());
        now = due;
        world.pass(now);
    }
}

#[test]
fn a_busy_peer_is_left_alone_for_a_moment_and_its_class_alone() {
    let mut world = world();
    world.want(1, Class::Bulk, SIZE, &[A, B], at(0));
    world.want(2, Class::High, SIZE, &[A], at(0));
    let request = world.fetch.next_request(A, Class::High, at(0)).unwrap();
    assert_eq!(request.id, id(2));
    let request = world.next(A, at(0)).unwrap();
    world.reply(A, request, Outcome::Busy, at(1));
    world.want(3, Class::Bulk, SIZE, &[A], at(1));
    world.want(4, Class::High, SIZE, &[A], at(1));
    assert_eq!(world.next_byte(A, at(1)), Some(4));
    assert_eq!(world.next_byte(A, at(1)), None);
    assert_eq!(world.next_byte(B, at(1)), Some(1), "another serves it meanwhile");
    let (due, why) = world.fetch.poll_timeout().unwrap();
    assert_eq!((due, why), (at(11), "busy peer"));
    world.pass(due);
    assert_eq!(world.next_byte(A, due), Some(3));
}

#[test]
fn silence_is_hedged_at_another_and_the_first_answer_cancels_the_other() {
    let mut world = world();
    (0..20).for_each(|_| world.measure(A, 10));
    let start = world.fetch.now;
    world.want(1, Class::High, SIZE, &[A, B], start);
    // B was never measured, so A leaves it the first one.
    let first = world.next(B, start).unwrap();
    assert!(world.next(A, start).is_none());
    let silence = start + Duration::from_millis(500);
    world.pass(silence);
    let second = world.next(A, silence).unwrap();
    assert_eq!(second.id, id(1));
    world.reply(A, second, Outcome::Found, silence);
    assert_eq!(world.effects(), [cancel(B, first)]);
    assert_eq!(world.fetch.handle_reply(B, first.key, Outcome::Broken, silence, &mut world.fx), None);
}

#[test]
fn progress_is_not_silence() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    let request = world.next(A, at(0)).unwrap();
    for ms in (10..400).step_by(10) {
        world.pass(at(ms));
        world.fetch.handle_progress(A, request.key, at(ms));
        assert!(world.next(B, at(ms)).is_none());
    }
    world.pass(at(450));
    assert_eq!(world.next_byte(B, at(450)), Some(1));
}

#[test]
fn a_peer_that_resumes_before_the_hedge_went_out_keeps_its_request() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A], at(0));
    let request = world.next(A, at(0)).unwrap();
    world.pass(at(600));
    world.fetch.handle_progress(A, request.key, at(600));
    world.fetch.handle_advertiser(TOPIC, id(1), B, SIZE);
    assert!(world.next(B, at(600)).is_none());
    world.pass(at(5000));
    assert_eq!(world.next_byte(B, at(5000)), Some(1), "silent again");
}

#[test]
fn a_silent_peer_without_alternative_is_waited_for() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A], at(0));
    let request = world.next(A, at(0)).unwrap();
    world.pass(at(60_000));
    assert_eq!(world.effects(), []);
    assert!(world.next(A, at(60_000)).is_none());
    world.reply(A, request, Outcome::Found, at(60_000));
}

#[test]
fn two_silent_peers_do_not_keep_a_third_from_being_asked() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B, C], at(0));
    let first = world.next(A, at(0)).unwrap();
    world.pass(at(600));
    let second = world.next(B, at(600)).unwrap();
    assert!(world.next(C, at(600)).is_none(), "two at a time");
    world.pass(at(3000));
    assert_eq!(world.effects(), [cancel(A, first)]);
    let third = world.next(C, at(3000)).unwrap();
    world.reply(C, third, Outcome::Found, at(3001));
    assert_eq!(world.effects(), [cancel(B, second)]);
}

#[test]
fn a_peer_that_trickles_does_not_hold_up_what_another_has() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    let request = world.next(A, at(0)).unwrap();
    for ms in (1..2100).step_by(10) {
        world.pass(at(ms));
        world.fetch.handle_progress(A, request.key, at(ms));
    }
    assert_eq!(world.next_byte(B, at(2100)), Some(1));
}

#[test]
fn wrong_bytes_are_a_fault_and_their_sender_is_not_asked_again() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A], at(0));
    let request = world.next(A, at(0)).unwrap();
    world.reply(A, request, Outcome::WrongBytes, at(1));
    assert_eq!(world.effects(), [FetchEffect::Fault { peer: A, topic: TOPIC, id: id(1) }]);
    world.fetch.handle_unadvertised(TOPIC, id(1), A, &mut world.fx);
    world.fetch.handle_advertiser(TOPIC, id(1), A, SIZE);
    world.pass(at(60_000));
    assert!(world.next(A, at(60_000)).is_none());
    world.fetch.handle_advertiser(TOPIC, id(1), B, SIZE);
    assert_eq!(world.next_byte(B, at(60_000)), Some(1));
}

#[test]
fn requests_of_a_lost_connection_go_on_elsewhere_and_come_back_with_it() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    world.want(2, Class::High, SIZE, &[A], at(0));
    assert_eq!(world.next_byte(A, at(0)), Some(1));
    assert_eq!(world.next_byte(A, at(0)), Some(2));
    world.fetch.handle_disconnected(A, at(1));
    world.check();
    assert!(!world.fetch.has_requests(A));
    assert!(world.next(A, at(1)).is_none());
    assert_eq!(world.next_byte(B, at(1)), Some(1));
    world.fetch.handle_connected(A);
    assert!(world.fetch.has_requests(A));
    assert_eq!(world.next_byte(A, at(2)), Some(2));
}

#[test]
fn cancelling_abandons_the_requests_in_flight() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    let request = world.next(A, at(0)).unwrap();
    world.fetch.handle_cancel(TOPIC, id(1), &mut world.fx);
    assert_eq!(world.effects(), [cancel(A, request)]);
    assert!(world.next(B, at(0)).is_none());
    assert!(world.fetch.is_empty() && world.fetch.poll_timeout().is_none());
    assert_eq!(world.fetch.in_flight(Class::High), (0, 0));
}

#[test]
fn an_advertiser_that_is_gone_is_not_asked_and_its_request_is_abandoned() {
    let mut world = world();
    world.want(1, Class::High, SIZE, &[A, B], at(0));
    let request = world.next(A, at(0)).unwrap();
    world.fetch.handle_unadvertised(TOPIC, id(1), A, &mut world.fx);
    assert_eq!(world.effects(), [cancel(A, request)]);
    assert!(world.next(A, at(0)).is_none());
    world.fetch.handle_unadvertised(TOPIC, id(1), B, &mut world.fx);
    assert!(world.next(B, at(0)).is_none());
    assert!(world.fetch.is_wanted(TOPIC, &id(1)), "it waits for an advertiser");
    world.fetch.handle_advertiser(TOPIC, id(1), C, SIZE);
    assert_eq!(world.next_byte(C, at(0)), Some(1));
}

#[test]
fn nothing_is_left_to_a_peer_whose_link_is_full() {
    let mut world = world();
    for (byte, peer, millis) in [(1, A, 1), (2, B, 10)] {
        world.want(byte, Class::Bulk, SIZE, &[peer], at(0));
        let request = world.next(peer, at(0)).unwrap();
        world.reply(peer, request, Outcome::Found, at(millis));
    }
    world.want(3, Class::Bulk, SIZE, &[A, B], at(20));
    assert_eq!(world.next_byte(B, at(20)), None);
    world.fetch.handle_full(A);
    assert_eq!(world.next_byte(B, at(20)), Some(3));
}

#[test]
fn the_most_urgent_class_goes_first() {
    let mut world = world();
    world.want(1, Class::Bulk, SIZE, &[A], at(0));
    world.want(2, Class::Critical, SIZE, &[A], at(0));
    world.want(3, Class::Normal, SIZE, &[A], at(0));
    assert_eq!(world.fetch.next_request(A, Class::High, at(0)), None);
    assert_eq!(world.next_byte(A, at(0)), Some(2));
    assert_eq!(world.next_byte(A, at(0)), Some(3));
    assert_eq!(world.next_byte(A, at(0)), Some(1));
}

#[test]
fn a_peer_has_no_more_requests_in_flight_than_its_budget_and_another_takes_the_rest() {
    let mut world = world();
    (1..=3).for_each(|byte| world.want(byte, Class::High, SIZE, &[A, B], at(0)));
    let first = world.next(A, at(0)).unwrap();
    assert!(world.next(A, at(0)).is_some());
    assert!(world.next(A, at(0)).is_none());
    assert_eq!(world.next_byte(B, at(0)), Some(3));
    world.want(4, Class::High, SIZE, &[A], at(0));
    world.reply(A, first, Outcome::Found, at(1));
    assert_eq!(world.next_byte(A, at(1)), Some(4));
}

#[test]
fn bytes_in_flight_stay_within_budget_and_one_large_body_fits_alone() {
    let mut world = world();
    world.want(1, Class::High, 600, &[A], at(0));
    world.want(2, Class::High, 5000, &[A], at(0));
    let small = world.next(A, at(0)).unwrap();
    assert!(world.next(A, at(0)).is_none());
    world.reply(A, small, Outcome::Found, at(1));
    assert_eq!(world.next_byte(A, at(1)), Some(2));
    assert_eq!(world.fetch.in_flight(Class::High), (1, 5000));
}

#[test]
fn one_class_does_not_use_the_budget_of_another() {
    let mut world = world();
    world.want(1, Class::Bulk, 9000, &[A], at(0));
    assert!(world.next(A, at(0)).is_some());
    world.want(2, Class::Critical, 900, &[A], at(0));
    assert_eq!(world.next_byte(A, at(0)), Some(2));
}

#[test]
fn bodies_that_others_owe_do_not_keep_a_peer_from_being_asked_for_one_at_a_time() {
    let mut world = world();
    world.want(1, Class::High, 900, &[B], at(0));
    world.want(2, Class::High, 900, &[C], at(0));
    assert!(world.next(B, at(0)).is_some() && world.next(C, at(0)).is_some());
    world.want(3, Class::High, 1500, &[A], at(0));
    world.want(4, Class::High, 100, &[A], at(0));
    let large = world.next(A, at(0)).unwrap();
    assert!(world.next(A, at(0)).is_none());
    world.reply(A, large, Outcome::Found, at(1));
    assert_eq!(world.next_byte(A, at(1)), Some(4));
}

#[test]
fn a_slower_peer_leaves_the_request_to_a_faster_one_with_room() {
    let mut world = world();
    world.measure(A, 50);
    world.measure(B, 5);
    let now = world.fetch.now;
    (1..=3).for_each(|byte| world.want(byte, Class::High, SIZE, &[A, B], now));
    assert!(world.next(A, now).is_none());
    assert!(world.fetch.has_requests(A));
    assert!(world.next(B, now).is_some() && world.next(B, now).is_some());
    assert_eq!(world.next_byte(B, now), None, "its budget is used up");
    assert!(world.next_byte(A, now).is_some());
}

#[test]
fn the_precedence_of_a_faster_peer_whose_link_has_no_room_ends_soon() {
    let mut world = world();
    world.measure(A, 50);
    world.measure(B, 5);
    let now = world.fetch.now;
    world.want(1, Class::High, SIZE, &[A, B], now);
    assert!(world.next(A, now).is_none());
    let (due, why) = world.fetch.poll_timeout().unwrap();
    assert_eq!((due, why), (now + Duration::from_millis(20), "fetch preference"));
    world.pass(due);
    assert_eq!(world.next_byte(A, due), Some(1));
}

#[test]
fn exploring_fetches_measure_slower_peers_too() {
    let mut world = world_of(FetchLimits { explore_one_in: 10, ..limits() });
    world.measure(A, 50);
    world.measure(B, 5);
    let mut slow = 0;
    for _ in 0..1000 {
        let now = world.fetch.now;
        world.want(1, Class::High, SIZE, &[A, B], now);
        let asked = [A, B].into_iter().find_map(|peer| Some((peer, world.next(peer, now)?)));
        let (peer, request) = asked.expect("somebody takes it");
        let (ms, count) = if peer == A { (50, 1) } else { (5, 0) };
        slow += count;
        world.reply(peer, request, Outcome::Found, now + Duration::from_millis(ms));
    }
    assert!((20..100).contains(&slow), "{slow} of 1000; about 50 are expected");
}

#[test]
fn a_peer_of_poor_standing_is_asked_last() {
    let mut world = world();
    world.measure(B, 50);
    world.fetch.handle_standing(A, true);
    let now = world.fetch.now;
    world.want(1, Class::High, SIZE, &[A, B], now);
    world.want(2, Class::High, SIZE, &[A], now);
    assert_eq!(world.next_byte(A, now), Some(2), "nobody else has this one");
    assert_eq!(world.next_byte(B, now), Some(1));
}

#[test]
fn a_grace_keeps_everybody_from_being_asked_until_it_ends_or_is_lifted() {
    let mut world = world();
    for byte in [1, 2] {
        world.fetch.handle_wanted(TOPIC, id(byte), Class::High, Some(at(30)), at(0));
        world.fetch.handle_advertiser(TOPIC, id(byte), A, SIZE);
    }
    assert!(world.next(A, at(0)).is_none());
    world.fetch.handle_wanted(TOPIC, id(2), Class::High, None, at(1));
    assert_eq!(world.next_byte(A, at(1)), Some(2));
    assert_eq!(world.next_byte(A, at(1)), None);
    assert_eq!(world.fetch.poll_timeout(), Some((at(30), "fetch grace")));
    world.pass(at(30));
    assert_eq!(world.next_byte(A, at(30)), Some(1));
}

#[test]
fn the_same_id_under_another_topic_is_another_fetch() {
    let mut world = world();
    let other = TopicId(9);
    world.fetch.handle_wanted(other, id(1), Class::High, None, at(0));
    world.fetch.handle_advertiser(other, id(1), B, SIZE);
    let hostile = world.next(B, at(0)).unwrap();
    world.want(1, Class::High, SIZE, &[A], at(0));
    let honest = world.next(A, at(0)).unwrap();
    assert_eq!((hostile.topic, honest.topic), (other, TOPIC));
    world.reply(A, honest, Outcome::Found, at(1));
    assert!(world.fetch.is_wanted(other, &id(1)));
}

#[test]
fn the_size_is_the_asked_peers_own_word() {
    let mut world = world();
    world.want(1, Class::High, 1, &[A], at(0));
    world.fetch.handle_advertiser(TOPIC, id(1), B, SIZE);
    let request = world.next(A, at(0)).unwrap();
    assert_eq!(request.size, 1);
    world.reply(A, request, Outcome::Broken, at(1));
    assert_eq!(world.next(B, at(1)).unwrap().size, SIZE);
}

#[test]
fn queues_of_a_link_that_never_pulls_stay_bounded() {
    let mut world = world();
    for _ in 0..5000 {
        world.want(1, Class::High, SIZE, &[A, B], at(0));
        world.fetch.handle_unadvertised(TOPIC, id(1), A, &mut world.fx);
        world.fetch.handle_advertiser(TOPIC, id(1), A, SIZE);
        let request = world.next(B, at(0)).unwrap();
        world.reply(B, request, Outcome::Found, at(0));
    }
    assert!(world.fetch.peers[0].queues[Class::High].tickets.len() < 100);
}

#[test]
fn every_wanted_artifact_is_fetched_from_an_honest_peer_among_hostile_ones() {
    for seed in 0..30 {
        let mut world = world_of(FetchLimits { explore_one_in: 3, ..limits() });
        let mut rng = Rng::new(seed);
        let (mut now, mut flying) = (at(0), Vec::new());
        for step in 0..6000u64 {
            now = now + Duration::from_millis(rng.below(20));
            world.pass(now);
            if step < 2000 && rng.one_in(8) {
                let class = Class::ALL[rng.below(4) as usize];
                let byte = rng.below(4) as u8 + 4 * class as u8;
                world.want(byte, class, rng.below(1500) as u32, &[A, B, C], now);
            }
            let peer = PeerIndex(rng.below(3) as u16);
            match rng.below(60) {
                0 if step < 2000 => {
                    world.fetch.handle_disconnected(peer, now);
                    flying.retain(|(to, _)| *to != peer);
                }
                1 if step < 2000 => {
                    let byte = rng.below(16) as u8;
                    world.fetch.handle_cancel(TOPIC, id(byte), &mut world.fx);
                }
                2..6 => world.fetch.handle_connected(peer),
                6..30 => flying.extend(world.next(peer, now).map(|request| (peer, request))),
                _ if !flying.is_empty() => {
                    let (to, request) = flying.swap_remove(rng.below(flying.len() as u64) as usize);
                    let outcome = match (to, rng.below(5)) {
                        (A, _) => Outcome::Found,
                        (B, 0) => continue, // silent for ever
                        (_, 1) => Outcome::WrongBytes,
                        (_, 2) => Outcome::Broken,
                        (_, 3) => Outcome::Busy,
                        _ => Outcome::NotFound,
                    };
                    world.fetch.handle_reply(to, request.key, outcome, now, &mut world.fx);
                }
                _ => (),
            }
            world.check();
            for effect in world.effects() {
                if let FetchEffect::Cancel { peer, key } = effect {
                    flying.retain(|(to, request)| (*to, request.key) != (peer, key));
                }
            }
        }
        assert!(world.fetch.is_empty(), "seed {seed}: {:?}", world.fetch.tasks);
    }
}
