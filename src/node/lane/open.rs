//! A topic as one lane holds it.

use crate::config::{FilterThread, TopicConfig};
use crate::engine::Command;
use crate::node::delivery::{Disposition, Outlet};
use crate::node::filter::Desk;
use crate::node::topic::{Room, TopicParts};
use crate::sync::Wants;
use crate::types::{ArtifactId, TopicId};

/// See the module. When it goes, nobody waits for room in this lane any more.
pub(super) struct OpenTopic {
    pub(super) id: TopicId,
    pub(super) outlet: Outlet,
    pub(super) desk: Desk,
    pub(super) parts: TopicParts,
    lane: u16,
    /// What has come free, and who waits for it has not been called yet.
    pub(super) freed: Wants,
}

impl OpenTopic {
    /// `config`: as the engine is given it.
    pub(super) fn new(lane: u16, config: &TopicConfig, outlet: Outlet, parts: TopicParts) -> OpenTopic {
        let elsewhere = config.filter_thread == FilterThread::Own;
        let desk = Desk::new(parts.gate.clone(), lane.into(), elsewhere);
        OpenTopic { id: config.id, outlet, desk, parts, lane, freed: 0 }
    }

    /// What a consumer's decision asks of the engine.
    pub(super) fn command(&self, id: ArtifactId, disposition: Disposition) -> Option<Command> {
        let topic = self.id;
        match disposition {
            Disposition::Keep => None,
            Disposition::Validate if self.parts.room.take(self.lane, 0).is_ok() => {
                Some(Command::Validate { topic, id })
            }
            Disposition::Release | Disposition::Validate => Some(Command::Release { topic, id }),
        }
    }

    /// A slot and `bytes` of the table are free.
    pub(super) fn free(&mut self, bytes: u64) {
        self.parts.room.free(self.lane, bytes);
        self.freed |= Room::TABLE;
    }

    /// Calls who waits for what has come free, once in a turn. Whether that must be done again.
    pub(super) fn call_waiting(&mut self) -> bool {
        if self.freed != 0 && self.parts.room.call(self.lane, self.freed) {
            self.freed = 0;
        }
        self.freed != 0
    }

    /// Nothing comes free any more.
    pub(super) fn close(&self) {
        self.parts.room.close(self.lane);
    }
}

impl Drop for OpenTopic {
    fn drop(&mut self) {
        self.close();
    }
}
