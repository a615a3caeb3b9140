//! Plain counters, counted locally by each lane and published in housekeeping; how long artifacts wait where; and
//! what happened to them.

mod journal;
mod stages;

pub use journal::{Happening, Journal};
pub(crate) use stages::Histogram;
pub use stages::{Stage, StageTime, StageTimes, Stages};

/// Declares a struct of `u64` counters with one table of names, a merge and a difference.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: u64),* }

        impl $name {
            /// Every counter with its name, in order of declaration.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }

            /// Adds another lane's counters.
            pub fn merge(&mut self, other: &Self) {
                $(self.$field = self.$field.saturating_add(other.$field);)*
            }

            /// What was counted since `earlier`.
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($field: self.$field.saturating_sub(earlier.$field)),* }
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// What a lane's engine counts.
    EngineCounters {
        /// Artifacts that the replica broadcast.
        broadcasts,
        /// Artifacts that the replica aborted.
        aborts,
        /// Artifacts that the replica validated, and that this node relays.
        relays,
        /// Validated artifacts that are not relayed, because the active bytes are used up.
        relays_refused,
        /// Bodies that arrived whole and hash to their id.
        bodies_received,
        /// Their bytes.
        body_bytes_received,
        /// Bodies that arrived although they were here already or were not wanted.
        bodies_unneeded,
        /// Bodies that do not hash to the id that was asked for or announced.
        bodies_wrong,
        /// Bodies that arrived and found no room; they are fetched again later.
        bodies_dropped,
        /// Artifacts handed to the replica.
        delivered,
        /// Their bytes.
        delivered_bytes,
        /// Artifacts whose last advertiser went.
        withdrawn,
        /// Updates sent with a body.
        pushes_sent,
        /// Updates sent without a body.
        adverts_sent,
        /// Of these, the ones of relayed artifacts.
        relay_adverts_sent,
        /// Their bytes, as frames.
        relay_advert_bytes_sent,
        /// Slots cleared at a peer.
        clears_sent,
        /// Requests sent.
        requests_sent,
        /// Requests answered with a body.
        replies_sent,
        /// Requests for what is not here.
        not_found_sent,
        /// Bodies abandoned while they were being sent.
        resets_sent,
        /// Updates received that an older one may not override.
        updates_stale,
        /// Updates refused for a limit.
        updates_refused,
        /// Slots not told again after a reconnect, because the peer still held them.
        slots_resumed,
        /// Frames that name what a peer holds of an earlier start of this node, or of a topic that is not open.
        resumes_stale,
        /// Updates of ours that a peer refused for its limit, repeated and false ones too.
        refused_by_peers,
        /// Panics of topics' filters; each counts as `Later`.
        filter_panics,
        /// Updates for topics that nobody here listens to.
        updates_unknown_topic,
        /// Connections closed because the peer broke the protocol.
        faults,
    }
}

counters! {
    /// What happened to one topic's artifacts, since it was opened.
    TopicCounters {
        /// Artifacts that the replica broadcast.
        broadcasts,
        /// Broadcasts that were answered with `Full` or `Busy`.
        broadcasts_refused,
        /// Of the broadcast and the relayed, those that it aborted.
        aborts,
        /// Artifacts that the replica validated, and that this node relays.
        relays,
        /// Updates sent with a body, one for each peer.
        pushes_sent,
        /// Updates sent without a body, one for each peer.
        adverts_sent,
        /// Slots cleared at a peer.
        clears_sent,
        /// Requests sent.
        requests_sent,
        /// Requests answered with a body.
        replies_sent,
        /// Bodies abandoned while they were being sent.
        resets_sent,
        /// Bodies that arrived whole, needed or not.
        bodies_received,
        /// Bodies that arrived and found no room; they are fetched again later.
        bodies_dropped,
        /// Updates of ours that a peer refused for its limit, repeated and false ones too.
        refused_by_peers,
        /// Updates of peers refused here for a limit.
        updates_refused,
        /// Artifacts handed to the replica.
        delivered,
        /// Their bytes.
        delivered_bytes,
        /// Artifacts whose last advertiser went, as told to the replica.
        withdrawn,
    }
}

counters! {
    /// What one topic holds at a moment.
    TopicGauges {
        /// Artifacts that are broadcast or relayed from here.
        active,
        /// Bytes of their bodies.
        active_bytes,
        /// Slots of which connected peers must still be told, summed over them; [`Topic::lag`](crate::Topic::lag) tells of each.
        backlog,
        /// Artifacts that the filter wants later.
        later,
        /// Artifacts whose body is here and waits in a lane, for the consumer's queue is full.
        waiting,
        /// Events in the consumer's queue.
        queued,
        /// Bytes of received bodies that are neither validated nor released.
        pending_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::EngineCounters;

    #[test]
    fn lanes_add_up_and_differences_come_back() {
        let one = EngineCounters { delivered: 2, ..EngineCounters::default() };
        let mut sum = one;
        sum.merge(&one);
        assert_eq!(sum.delivered, 4);
        assert_eq!(sum.since(&one), one);
        assert!(sum.entries().any(|entry| entry == ("delivered", 4)));
    }
}
