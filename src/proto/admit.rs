//! Admission: what the replica's filter says of an advert, and the adverts that it is to be asked about, now or again.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::{Advert, Filter, Verdict};
use crate::types::{ArtifactId, NodeId};

/// The filter of one topic in one lane. It is asked *here*, at once, or *elsewhere*, by whoever pulls the questions.
///
/// - An advert comes: [`judge`](Admission::judge).
/// - The filter would judge differently: [`handle_filter_changed`](Admission::handle_filter_changed). Another one judges:
///   [`handle_filter_replaced`](Admission::handle_filter_replaced). All that was `Later` is to be asked again: here with
///   [`ask`](Admission::ask) until nothing is [`open_here`](Admission::is_open_here), elsewhere with
///   [`poll_question`](Admission::poll_question), each of which is answered with [`handle_verdict`](Admission::handle_verdict).
///
/// Remembers the adverts that are `Later` or wait for their verdict, at most one per advertiser and artifact; it relies on the
/// caller to [`forget`](Admission::forget) what is withdrawn, so their number is bounded by what the views hold. Questions come
/// in the order in which they arose: one that waits keeps its turn, however often the filter changes. An answer counts once,
/// and only while its advert is as it was and the filter is the one that was asked.
pub struct Admission {
    filter: Option<Filter>,
    elsewhere: bool,
    later: BTreeMap<Key, Waiting>,
    /// What the filter is to be asked, in turn.
    open: BTreeMap<u64, Key>,
    next_ticket: u64,
    panics: u64,
}

type Key = (ArtifactId, NodeId);

struct Waiting {
    advert: Advert,
    asked: Asked,
}

enum Asked {
    /// Not yet; its turn.
    Open(u64),
    /// It is being asked elsewhere.
    Out {
        ticket: u64,
        /// The filter has changed meanwhile.
        changed: bool,
    },
    /// It has said `Later`.
    Answered,
}

/// What the filter is asked elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// To be given back with the verdict.
    pub ticket: u64,
    /// What it is about.
    pub advert: Advert,
}

impl Admission {
    /// Without a filter everything is wanted. `elsewhere`: where it is asked.
    pub fn new(filter: Option<Filter>, elsewhere: bool) -> Admission {
        let (later, open) = (BTreeMap::new(), BTreeMap::new());
        Admission { filter, elsewhere, later, open, next_ticket: 0, panics: 0 }
    }

    /// Asks the filter. A filter that panics is counted, and means `Later`: nothing is lost, nothing is
    /// spent. What is asked elsewhere is `Later` until the verdict comes.
    pub fn judge(&mut self, advert: &Advert) -> Verdict {
        let key = (advert.id, advert.from);
        let waits = |known: &Waiting| known.advert == *advert && !matches!(known.asked, Asked::Answered);
        if self.elsewhere && self.later.get(&key).is_some_and(waits) {
            return Verdict::Later;
        }
        self.remove(&key);
        let (verdict, asked) = if self.elsewhere {
            (Verdict::Later, Asked::Open(self.open_one(key)))
        } else {
            (self.verdict_on(advert), Asked::Answered)
        };
        if verdict == Verdict::Later {
            self.later.insert(key, Waiting { advert: advert.clone(), asked });
        }
        verdict
    }

    /// `id` is withdrawn, or its body has come: it is not judged again.
    pub fn forget(&mut self, id: &ArtifactId) {
        let ends = (*id, NodeId([0; 32]))..=(*id, NodeId([0xff; 32]));
        while let Some((key, _)) = self.later.range(ends.clone()).next() {
            let key = *key;
            self.remove(&key);
        }
    }

    /// Whether `id` waits for the filter, on any advertiser's word.
    pub fn remembers(&self, id: &ArtifactId) -> bool {
        let ends = (*id, NodeId([0; 32]))..=(*id, NodeId([0xff; 32]));
        self.later.range(ends).next().is_some()
    }

    /// `from` does not advertise `id` any more; others may.
    pub fn forget_one(&mut self, id: &ArtifactId, from: &NodeId) {
        self.remove(&(*id, *from));
    }

    /// The replica says that its filter would judge differently now: all remembered adverts are to be judged again. A verdict
    /// that is on its way from elsewhere counts if it is `Want`; otherwise the filter is asked once more.
    pub fn handle_filter_changed(&mut self) {
        let (open, next_ticket) = (&mut self.open, &mut self.next_ticket);
        for (key, waiting) in self.later.iter_mut() {
            match &mut waiting.asked {
                Asked::Open(_) => (),
                Asked::Out { changed, .. } => *changed = true,
                Asked::Answered => waiting.asked = Asked::Open(turn(open, next_ticket, *key)),
            }
        }
    }

    /// Another filter judges from now on, here or elsewhere: all remembered adverts are to be judged again, and verdicts that
    /// are on their way do not count.
    pub fn handle_filter_replaced(&mut self, elsewhere: bool) {
        self.elsewhere = elsewhere;
        let (open, next_ticket) = (&mut self.open, &mut self.next_ticket);
        for (key, waiting) in &mut self.later {
            if !matches!(waiting.asked, Asked::Open(_)) {
                waiting.asked = Asked::Open(turn(open, next_ticket, *key));
            }
        }
    }

    /// Asks the filter here about up to `limit` of what is open. Appends what is not `Later` any more; it is forgotten.
    pub fn ask(&mut self, limit: usize, fx: &mut Vec<(Advert, Verdict)>) {
        for _ in 0..limit {
            if !self.is_open_here() {
                break;
            }
            let Some(key) = self.open.pop_first().map(|(_, key)| key) else { break };
            let Some(waiting) = self.later.remove(&key) else { continue };
            match self.verdict_on(&waiting.advert) {
                Verdict::Later => drop(self.later.insert(key, Waiting { asked: Asked::Answered, ..waiting })),
                verdict => fx.push((waiting.advert, verdict)),
            }
        }
    }

    /// Whether [`Admission::ask`] has anything to ask.
    pub fn is_open_here(&self) -> bool {
        !self.elsewhere && !self.open.is_empty()
    }

    /// Whether [`Admission::poll_question`] has one.
    pub fn has_questions(&self) -> bool {
        self.elsewhere && !self.open.is_empty()
    }

    /// The next question for a filter that is asked elsewhere.
    pub fn poll_question(&mut self) -> Option<Question> {
        while self.has_questions() {
            let (ticket, key) = self.open.pop_first()?;
            if let Some(waiting) = self.later.get_mut(&key) {
                waiting.asked = Asked::Out { ticket, changed: false };
                return Some(Question { ticket, advert: waiting.advert.clone() });
            }
        }
        None
    }

    /// The answer to a question about `id`, on the word of `from`; `None`: the filter panicked. Gives the advert and its
    /// verdict when that counts and is not `Later`; it is forgotten.
    pub fn handle_verdict(
        &mut self,
        id: &ArtifactId,
        from: &NodeId,
        ticket: u64,
        verdict: Option<Verdict>,
    ) -> Option<(Advert, Verdict)> {
        self.panics += u64::from(verdict.is_none());
        let key = (*id, *from);
        let changed = match self.later.get(&key)?.asked {
            Asked::Out { ticket: asked, changed } if asked == ticket => changed,
            _ => return None,
        };
        match verdict.unwrap_or(Verdict::Later) {
            Verdict::Later | Verdict::Discard if changed => {
                let open = Asked::Open(self.open_one(key));
                self.later.get_mut(&key)?.asked = open;
                None
            }
            Verdict::Later => {
                self.later.get_mut(&key)?.asked = Asked::Answered;
                None
            }
            verdict => Some((self.remove(&key)?.advert, verdict)),
        }
    }

    /// Adverts that wait for the filter.
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

    fn remove(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.later.remove(key)?;
        if let Asked::Open(ticket) = waiting.asked {
            self.open.remove(&ticket);
        }
        Some(waiting)
    }

    fn open_one(&mut self, key: Key) -> u64 {
        turn(&mut self.open, &mut self.next_ticket, key)
    }

    fn verdict_on(&mut self, advert: &Advert) -> Verdict {
        let Some(filter) = &self.filter else { return Verdict::Want };
        // The filter sees only the advert, by shared reference: a panic leaves nothing of ours half done.
        catch_unwind(AssertUnwindSafe(|| filter(advert))).unwrap_or_else(|_| {
            self.panics += 1;
            Verdict::Later
        })
    }
}

/// The last turn of those that are open.
fn turn(open: &mut BTreeMap<u64, Key>, next_ticket: &mut u64, key: Key) -> u64 {
    let ticket = *next_ticket;
    *next_ticket += 1;
    open.insert(ticket, key);
    ticket
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Admission({} later, {} open, {} panics)", self.later.len(), self.open.len(), self.panics)
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
        (Admission::new(Some(filter), false), size)
    }

    /// The filter has changed, and is asked about everything.
    fn change(admission: &mut Admission, fx: &mut Vec<(Advert, Verdict)>) {
        admission.handle_filter_changed();
        admission.ask(usize::MAX, fx);
    }

    #[test]
    fn without_a_filter_everything_is_wanted() {
        assert_eq!(Admission::new(None, false).judge(&advert(1, 1, 5)), Verdict::Want);
    }

    #[test]
    fn later_adverts_are_judged_again_when_the_filter_changes() {
        let (mut admission, size) = by_size();
        assert_eq!(admission.judge(&advert(1, 1, 5)), Verdict::Want);
        for (byte, size) in [(2, 6), (3, 7), (4, 8)] {
            assert_eq!(admission.judge(&advert(byte, 1, size)), Verdict::Later);
        }
        let mut fx = Vec::new();
        change(&mut admission, &mut fx);
        assert_eq!(fx, []);
        size.store(7, Ordering::Relaxed);
        change(&mut admission, &mut fx);
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
        change(&mut admission, &mut fx);
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
        change(&mut admission, &mut fx);
        assert_eq!(fx, [(advert(2, 0, 7), Verdict::Want), (advert(2, 255, 7), Verdict::Want)]);
        assert!(admission.is_empty());
    }

    #[test]
    fn a_filter_that_panics_means_later_and_is_counted() {
        let mut admission = Admission::new(Some(Arc::new(|_: &Advert| panic!("a filter's own bug"))), false);
        assert_eq!(admission.judge(&advert(1, 1, 5)), Verdict::Later);
        let mut fx = Vec::new();
        change(&mut admission, &mut fx);
        assert_eq!((fx.len(), admission.len(), admission.panics()), (0, 1, 2));
    }

    #[test]
    fn what_is_asked_in_portions_keeps_its_turn_when_the_filter_changes_again() {
        let (mut admission, size) = by_size();
        (1..=4).for_each(|byte| assert_eq!(admission.judge(&advert(byte, 1, 7)), Verdict::Later));
        size.store(7, Ordering::Relaxed);
        admission.handle_filter_changed();
        let mut fx = Vec::new();
        admission.ask(1, &mut fx);
        admission.judge(&advert(0, 1, 8));
        admission.handle_filter_changed();
        admission.ask(3, &mut fx);
        let ids: Vec<u8> = fx.iter().map(|(advert, _)| advert.id.0[0]).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
        assert!(admission.is_open_here());
    }

    /// Asked elsewhere, of which the first question has been pulled.
    fn asked_elsewhere(adverts: &[Advert]) -> (Admission, Question) {
        let mut admission = Admission::new(None, true);
        for advert in adverts {
            assert_eq!(admission.judge(advert), Verdict::Later);
        }
        let first = admission.poll_question().unwrap();
        assert_eq!((first.advert.clone(), admission.len()), (adverts[0].clone(), adverts.len()));
        (admission, first)
    }

    fn answer(admission: &mut Admission, question: &Question, verdict: Verdict) -> Option<(Advert, Verdict)> {
        let Question { ticket, advert } = question;
        admission.handle_verdict(&advert.id, &advert.from, *ticket, Some(verdict))
    }

    #[test]
    fn an_answer_from_elsewhere_counts_once() {
        let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5), advert(2, 1, 5)]);
        assert_eq!(answer(&mut admission, &question, Verdict::Want), Some((advert(1, 1, 5), Verdict::Want)));
        assert_eq!(answer(&mut admission, &question, Verdict::Want), None);
        let question = admission.poll_question().unwrap();
        assert_eq!(answer(&mut admission, &question, Verdict::Later), None);
        assert_eq!((admission.len(), admission.has_questions()), (1, false));
    }

    #[test]
    fn the_answer_to_what_was_withdrawn_does_nothing_even_if_it_is_named_again() {
        let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5)]);
        admission.forget(&question.advert.id);
        assert_eq!(answer(&mut admission, &question, Verdict::Want), None);
        admission.judge(&advert(1, 1, 5));
        assert_eq!(answer(&mut admission, &question, Verdict::Want), None);
        assert!(admission.poll_question().is_some_and(|again| again.ticket != question.ticket));
    }

    #[test]
    fn the_answer_of_a_filter_that_was_replaced_does_not_count() {
        let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5)]);
        admission.handle_filter_replaced(true);
        assert_eq!(answer(&mut admission, &question, Verdict::Discard), None);
        let again = admission.poll_question().unwrap();
        assert_eq!(answer(&mut admission, &again, Verdict::Want), Some((advert(1, 1, 5), Verdict::Want)));
    }

    #[test]
    fn what_is_wanted_while_the_filter_changes_is_wanted_and_the_rest_is_asked_again() {
        for (verdict, wanted) in [(Verdict::Want, true), (Verdict::Later, false), (Verdict::Discard, false)] {
            let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5)]);
            admission.handle_filter_changed();
            assert!(!admission.has_questions());
            assert_eq!(answer(&mut admission, &question, verdict).is_some(), wanted);
            assert_eq!(admission.has_questions(), !wanted);
        }
    }

    #[test]
    fn another_word_on_what_is_being_asked_is_another_question() {
        let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5)]);
        admission.judge(&advert(1, 1, 5));
        assert!(!admission.has_questions());
        admission.judge(&advert(1, 1, 6));
        assert_eq!(answer(&mut admission, &question, Verdict::Want), None);
        assert_eq!(admission.poll_question().unwrap().advert, advert(1, 1, 6));
    }

    #[test]
    fn what_waited_for_a_filter_elsewhere_is_asked_here_once_that_is_replaced() {
        let (mut admission, question) = asked_elsewhere(&[advert(1, 1, 5), advert(2, 1, 5)]);
        admission.handle_filter_replaced(false);
        assert!(admission.poll_question().is_none());
        let mut fx = Vec::new();
        admission.ask(usize::MAX, &mut fx);
        assert_eq!((fx.len(), admission.is_empty()), (2, true));
        assert_eq!(answer(&mut admission, &question, Verdict::Discard), None);
    }
}
