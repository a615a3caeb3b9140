//! Admission: what the replica's filter says of an advert, and the adverts that it wants to be asked about
//! again.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::{Advert, Filter, Verdict};
use crate::types::{ArtifactId, NodeId};

/// The filter of one topic in one lane.
///
/// Remembers the adverts judged `Later`, at most one per advertiser and artifact; it relies on the caller to
/// [`forget`](Admission::forget) what is withdrawn, so their number is bounded by what the views hold.
pub struct Admission {
    filter: Option<Filter>,
    later: BTreeMap<Key, Advert>,
    panics: u64,
}

type Key = (ArtifactId, NodeId);

impl Admission {
    /// Without a filter everything is wanted.
    pub fn new(filter: Option<Filter>) -> Admission {
        Admission { filter, later: BTreeMap::new(), panics: 0 }
    }

    /// Asks the filter. A filter that panics is counted, and means `Later`: nothing is lost, nothing is
    /// spent.
    pub fn judge(&mut self, advert: &Advert) -> Verdict {
        let verdict = self.ask(advert);
        let key = (advert.id, advert.from);
        if verdict == Verdict::Later {
            self.later.insert(key, advert.clone());
        } else {
            self.later.remove(&key);
        }
        verdict
    }

    /// `id` is withdrawn, or its body has come: it is not judged again.
    pub fn forget(&mut self, id: &ArtifactId) {
        let ends = (*id, NodeId([0; 32]))..=(*id, NodeId([0xff; 32]));
        while let Some((key, _)) = self.later.range(ends.clone()).next() {
            let key = *key;
            self.later.remove(&key);
        }
    }

    /// Whether `id` waits for the filter to change, on any advertiser's word.
    pub fn remembers(&self, id: &ArtifactId) -> bool {
        let ends = (*id, NodeId([0; 32]))..=(*id, NodeId([0xff; 32]));
        self.later.range(ends).next().is_some()
    }

    /// `from` does not advertise `id` any more; others may.
    pub fn forget_one(&mut self, id: &ArtifactId, from: &NodeId) {
        self.later.remove(&(*id, *from));
    }

    /// The replica says that its filter would judge differently now: all remembered adverts are judged again.
    /// Appends those that are not `Later` any more, by id; they are forgotten.
    pub fn handle_filter_changed(&mut self, fx: &mut Vec<(Advert, Verdict)>) {
        for (key, advert) in std::mem::take(&mut self.later) {
            match self.ask(&advert) {
                Verdict::Later => drop(self.later.insert(key, advert)),
                verdict => fx.push((advert, verdict)),
            }
        }
    }

    /// Adverts that wait for the filter to change.
    pub fn len(&self) -> usize {
        self.later.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.later.is_empty()
    }

    /// How often the filter has panicked.
    pub fn panics(&self) -> u64 {
        self.panics
    }

    fn ask(&mut self, advert: &Advert) -> Verdict {
        let Some(filter) = &self.filter else { return Verdict::Want };
        // The filter sees only the advert, by shared reference: a panic leaves nothing of ours half done.
        catch_unwind(AssertUnwindSafe(|| filter(advert))).unwrap_or_else(|_| {
            self.panics += 1;
            Verdict::Later
        })
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Admission({} later, {} panics)", self.later.len(), self.panics)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use std::sync::Arc;

    use super::*;
    use crate::types::{Attribute, TopicId};

    fn advert(byte: u8, from: u8, size: u32) -> Advert {
        Advert {
            topic: TopicId(1),
            id: ArtifactId([byte; 32]),
            size,
            attribute: Attribute::EMPTY,
            from: NodeId([from; 32]),
        }
    }

    /// Discards sizes below the returned number, wants those at it, and will want the others later.
    fn by_size() -> (Admission, Arc<AtomicU32>) {
        let size = Arc::new(AtomicU32::new(5));
        let filter: Filter = Arc::new({
            let size = size.clone();
            move |advert| match advert.size.cmp(&size.load(Ordering::Relaxed)) {
                std::cmp::Ordering::Less => Verdict::Discard,
                std::cmp::Ordering::Equal => Verdict::Want,
                std::cmp::Ordering::Greater => Verdict::Later,
            }
        });
        (Admission::new(Some(filter)), size)
    }

    #[test]
    fn without_a_filter_everything_is_wanted() {
        assert_eq!(Admission::new(None).judge(&advert(1, 1, 5)), Verdict::Want);
    }

    #[test]
    fn later_adverts_are_judged_again_when_the_filter_changes() {
        let (mut admission, size) = by_size();
        assert_eq!(admission.judge(&advert(1, 1, 5)), Verdict::Want);
        for (byte, size) in [(2, 6), (3, 7), (4, 8)] {
            assert_eq!(admission.judge(&advert(byte, 1, size)), Verdict::Later);
        }
        let mut fx = Vec::new();
        admission.handle_filter_changed(&mut fx);
        assert_eq!(fx, []);
        size.store(7, Ordering::Relaxed);
        admission.handle_filter_changed(&mut fx);
        assert_eq!(fx, [(advert(2, 1, 6), Verdict::Discard), (advert(3, 1, 7), Verdict::Want)]);
        assert_eq!(admission.len(), 1);
    }

    #[test]
    fn each_advertisers_word_is_judged_by_itself() {
        let (mut admission, size) = by_size();
        admission.judge(&advert(1, 1, 9));
        admission.judge(&advert(1, 2, 7));
        assert_eq!(admission.judge(&advert(1, 3, 5)), Verdict::Want);
        size.store(7, Ordering::Relaxed);
        let mut fx = Vec::new();
        admission.handle_filter_changed(&mut fx);
        assert_eq!(fx, [(advert(1, 2, 7), Verdict::Want)]);
        assert_eq!(admission.len(), 1);
    }

    #[test]
    fn what_is_forgotten_is_not_judged_again() {
        let (mut admission, size) = by_size();
        for from in [0, 7, 255] {
            admission.judge(&advert(1, from, 7));
            admission.judge(&advert(2, from, 7));
        }
        admission.forget(&advert(1, 0, 0).id);
        admission.forget_one(&advert(2, 0, 0).id, &NodeId([7; 32]));
        assert_eq!(admission.len(), 2);
        size.store(7, Ordering::Relaxed);
        let mut fx = Vec::new();
        admission.handle_filter_changed(&mut fx);
        assert_eq!(fx, [(advert(2, 0, 7), Verdict::Want), (advert(2, 255, 7), Verdict::Want)]);
        assert!(admission.is_empty());
    }

    #[test]
    fn a_filter_that_panics_means_later_and_is_counted() {
        let mut admission = Admission::new(Some(Arc::new(|_: &Advert| panic!("a filter's own bug"))));
        assert_eq!(admission.judge(&advert(1, 1, 5)), Verdict::Later);
        let mut fx = Vec::new();
        admission.handle_filter_changed(&mut fx);
        assert_eq!((fx.len(), admission.len(), admission.panics()), (0, 1, 2));
    }
}
