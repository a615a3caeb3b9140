//! M1 and M2: what a member holds, against what its limits allow, topic by topic and link by link.

use super::lane::Wire;
use super::member::{Member, limits, topic_id};
use super::options::{Options, TopicOptions};
use crate::config::Limits;
use crate::engine::Census;
use crate::quic::StreamCensus;
use crate::types::{Class, PeerIndex, TopicId};
use crate::wire::{MAX_BATCH, MAX_FRAME};

/// Frames of one topic that precede everything else on a link: that it is open, and what its table holds.
const WORDS: usize = 2;
/// Bytes that name one slot which is held of a peer, at most.
const HELD: usize = 18;

/// What an engine holds.
pub(super) fn check(node: usize, member: &Member, options: &Options) -> Result<(), String> {
    for (number, topic) in options.topics.iter().enumerate() {
        check_topic(member, topic_id(number), topic, options)
            .map_err(|what| format!("M1: member {node}, topic {number}: {what}"))?;
    }
    for peer in (0..options.members).filter(|peer| *peer != node) {
        check_link(member, peer, options)
            .map_err(|what| format!("M2: member {node}, link to {peer}: {what}"))?;
    }
    Ok(())
}

fn check_topic(member: &Member, id: TopicId, topic: &TopicOptions, options: &Options) -> Result<(), String> {
    let census = member.engine.census_of_topic(id);
    let (slots, links) = (topic.slots as usize, options.members - 1);
    let (artifacts, active) = (topic.artifacts(options.members), topic.active_room());
    let validated = census.body_bytes - census.received_bytes;
    let own = member.reserved_in(id);
    let fits = census.artifacts <= artifacts
        && census.named <= slots * links
        && census.later <= slots * links
        && census.backlog <= slots * links
        // As `Topic::tell` keeps it.
        && census.tellings <= 65 + 4 * artifacts
        && census.received_bytes + census.reserved_bytes <= topic.pending_bytes
        && own <= active
        && validated <= own + active;
    if !fits {
        return Err(format!("{census:?} and {own} bytes of its own, allowed is {topic:?}"));
    }
    let named = |peer: &usize| member.engine.named_by(id, PeerIndex(*peer as u16)).len();
    match (0..options.members).find(|peer| named(peer) > slots) {
        Some(peer) => Err(format!("{peer} names {} artifacts, allowed are {slots}", named(&peer))),
        None => Ok(()),
    }
}

fn check_link(member: &Member, peer: usize, options: &Options) -> Result<(), String> {
    let Census { control, replies, carried, arriving, .. } =
        member.engine.census_of_link(PeerIndex(peer as u16));
    let slots: usize = options.topics.iter().map(|topic| topic.slots as usize).sum();
    let controls = 1 + options.topics.len() * (WORDS + 1) + slots * HELD / MAX_FRAME + Limits::REFUSALS;
    let requests = options.open_requests();
    // Each request has a stream of its peer until its answer is acknowledged. Each push is of a slot, and reset when that
    // changes.
    let fits = control <= controls
        && replies + carried <= requests + slots
        && replies <= requests
        && arriving <= limits(options).pushes_in_assembly + options.topics.len();
    let census = (control, replies, carried, arriving);
    if fits { Ok(()) } else { Err(format!("{census:?} frames, requests, bodies out and in are too many")) }
}

impl Wire {
    /// What a transport holds for the streams of each peer.
    pub(super) fn check_bounds(&self, node: usize, options: &Options) -> Result<(), String> {
        let limits = limits(options);
        let budget = options.budget.requests as usize * Class::ALL.len();
        // A class takes one thing more as long as it has less than a batch.
        let largest = MAX_BATCH.max(limits.artifact_bytes as usize + MAX_HEAD);
        let unwritten = Class::ALL.len() * (MAX_BATCH + largest);
        for peer in (0..options.members).filter(|peer| *peer != node) {
            let census = self.census_of(node, peer);
            let StreamCensus { reading, assembling, unwritten: bytes, unasked, .. } = census;
            let streams = (options.datagrams.uni_streams + options.datagrams.bidi_streams) as usize;
            // Each topic has a place of its own; hostile members name one more.
            let places = limits.pushes_in_assembly + options.topics.len() + 1;
            let fits = assembling <= places
                && reading <= streams + budget
                && unasked <= budget
                && bytes <= unwritten;
            if !fits {
                return Err(format!("M2: the transport of member {node} holds {census:?} of {peer}"));
            }
        }
        Ok(())
    }
}

/// Bytes of a push's head, at most, or of an answer's.
const MAX_HEAD: usize = 256;
