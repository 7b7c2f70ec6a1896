#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn seen(version: &str, holder: Option<&str>) -> Seen {
    Seen { version: Some(version.into()), holder: holder.map(str::to_owned), lease: TIMING.lease }
}

#[test]
fn a_foreign_lease_has_to_stand_still() {
    let mut me = Candidate::new("me".into(), TIMING);
    assert_eq!(me.step(SECOND), Step::Look);
    me.saw(seen("1", Some("other")), SECOND);
    me.saw(seen("2", Some("other")), SECOND * 3);
    me.saw(seen("2", Some("other")), SECOND * 9);
    assert_eq!(me.step(SECOND * 9), Step::Wait(SECOND * 11));
    assert_eq!(me.step(SECOND * 11), Step::Look);
    me.saw(seen("2", Some("other")), SECOND * 11);
    assert_eq!(me.step(SECOND * 11), Step::Wait(SECOND * 12));
    assert_eq!(me.step(SECOND * 12), Step::Write);
    // Its holder says that it lasts longer.
    me.saw(Seen { lease: SECOND * 60, ..seen("3", Some("other")) }, SECOND * 12);
    assert_ne!(me.step(SECOND * 71), Step::Write);
    assert_eq!(me.step(SECOND * 72), Step::Write);
}

#[test]
fn given_back_is_free_and_absent_is_not() {
    let mut me = Candidate::new("me".into(), TIMING);
    me.saw(seen("1", None), SECOND);
    assert_eq!(me.step(SECOND), Step::Write);
    me.saw(Seen { version: None, ..seen("", None) }, SECOND);
    assert_eq!(me.step(SECOND * 9), Step::Look);
    assert_eq!(me.step(SECOND * 10), Step::Write);
}

#[test]
fn a_leader_counts_from_when_it_sent() {
    let mut me = Candidate::new("me".into(), TIMING);
    me.saw(seen("1", None), SECOND);
    me.wrote(seen("2", Some("me")), SECOND, SECOND * 4);
    assert_eq!(me.leads_until(), Some(SECOND * 7));
    assert_eq!(me.over_at(), Some(SECOND * 10));
    assert_eq!(me.step(SECOND * 4), Step::Write);
    // The renewal was not answered; what is there is looked at before the next.
    me.doubt();
    assert_eq!(me.step(SECOND * 4), Step::Look);
    assert_eq!(me.leads_until(), Some(SECOND * 7));
    me.saw(seen("3", Some("other")), SECOND * 5);
    assert_eq!(me.leads_until(), None);
}

/// What happens to one request, and what one candidate's clock is like.
#[derive(Debug, Clone, Copy)]
struct Fate {
    /// Milliseconds until it is carried out, and from then until the answer.
    there: u64,
    back: u64,
    lost: bool,
}

fn fate() -> impl Strategy<Value = Fate> {
    let quick = (0u64..300, 0u64..300, Just(false));
    let slow = (0u64..15_000, 0u64..15_000, any::<bool>());
    prop_oneof![5 => quick, 1 => slow].prop_map(|(there, back, lost)| Fate { there, back, lost })
}

/// One that asks for the Lease, on a clock that is off and runs wrong.
struct Simulated {
    candidate: Candidate,
    rate: f64,
    offset: Duration,
    /// What was sent: when it is carried out, when it is answered, and when it was sent.
    sent: Option<(u64, Option<u64>, u64, Step)>,
    answer: Option<(bool, Seen)>,
}

impl Simulated {
    fn new(id: usize, timing: Timing, rate: f64, offset: u64) -> Self {
        let candidate = Candidate::new(format!("candidate-{id}"), timing);
        let offset = Duration::from_millis(offset);
        Self { candidate, rate, offset, sent: None, answer: None }
    }

    fn clock(&self, ms: u64) -> Moment {
        self.offset + Duration::from_millis(ms).mul_f64(self.rate)
    }

    fn leads(&self, ms: u64) -> bool {
        self.candidate.leads_until().is_some_and(|until| self.clock(ms) < until)
    }
}

/// Whether two ever lead at once, and how often leadership began.
fn two_leaders(timing: Timing, rates: [f64; 2], offsets: [u64; 2], fates: &[Fate]) -> (bool, u32) {
    let (mut version, mut lease) = (1u64, seen("1", None));
    let mut all = [0, 1].map(|n| Simulated::new(n, timing, rates[n], offsets[n]));
    // Writes whose sender has given up, which are carried out all the same.
    let mut late: Vec<(u64, Option<String>, String)> = Vec::new();
    let (mut fates, mut begun, mut led) = (fates.iter(), 0, [false; 2]);
    for ms in (0..u64::MAX).step_by(50) {
        let mut write = |lease: &mut Seen, over: &Option<String>, id: &str| {
            if lease.version != *over {
                return false;
            }
            version += 1;
            *lease = seen(&version.to_string(), Some(id));
            true
        };
        late.retain(|(at, over, id)| {
            if *at <= ms {
                write(&mut lease, over, id);
            }
            *at > ms
        });
        for one in &mut all {
            let now = one.clock(ms);
            if let Some((at, back, sent, step)) = one.sent {
                if one.answer.is_none() && at <= ms {
                    let over = one.candidate.seen().and_then(|s| s.version.clone());
                    let ok = step == Step::Look || write(&mut lease, &over, &one.candidate.id);
                    one.answer = Some((ok, lease.clone()));
                }
                let sent_at = one.clock(sent);
                match (back, &one.answer) {
                    (Some(back), Some((ok, seen))) if back <= ms => {
                        match (step, ok) {
                            (Step::Look, _) => one.candidate.saw(seen.clone(), now),
                            (_, true) => one.candidate.wrote(seen.clone(), sent_at, now),
                            (_, false) => one.candidate.doubt(),
                        }
                        (one.sent, one.answer) = (None, None);
                    }
                    _ if ms - sent > 2000 => {
                        if step == Step::Write && one.answer.is_none() {
                            let over = one.candidate.seen().and_then(|s| s.version.clone());
                            late.push((at, over, one.candidate.id.clone()));
                        }
                        one.candidate.doubt();
                        (one.sent, one.answer) = (None, None);
                    }
                    _ => {}
                }
            }
            if one.sent.is_none() {
                match one.candidate.step(now) {
                    Step::Wait(_) => {}
                    step => {
                        let Some(fate) = fates.next() else { return (false, begun) };
                        let at = ms + fate.there;
                        let back = (!fate.lost).then_some(at + fate.back);
                        one.sent = Some((at, back, ms, step));
                    }
                }
            }
        }
        let leads = [all[0].leads(ms), all[1].leads(ms)];
        if leads[0] && leads[1] {
            return (true, begun);
        }
        begun += (0..2).filter(|n| leads[*n] && !led[*n]).count() as u32;
        led = leads;
    }
    (false, begun)
}

fn life() -> impl Strategy<Value = (f64, [u64; 2], Vec<Fate>)> {
    let offsets = [0u64..100_000, 0u64..100_000];
    (0.92f64..1.08, offsets, proptest::collection::vec(fate(), 0..200))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn never_two_lead_at_once((rate, offsets, fates) in life()) {
        let (two, _) = two_leaders(TIMING, [rate, 1.0 / rate], offsets, &fates);
        prop_assert!(!two);
    }

    #[test]
    fn with_good_answers_one_leads_and_stays((rate, offsets, _) in life()) {
        let good = vec![Fate { there: 10, back: 10, lost: false }; 100];
        let (two, begun) = two_leaders(TIMING, [rate, 1.0 / rate], offsets, &good);
        prop_assert_eq!((two, begun), (false, 1));
    }
}

/// The search finds what it is for: without the margin, and with a clock that lies.
#[test]
fn the_search_can_fail() {
    use proptest::test_runner::TestRunner;
    let careless = Timing { margin: Duration::ZERO, ..TIMING };
    for (timing, rates) in [(careless, [0.9, 1.1]), (TIMING, [0.6, 1.6])] {
        let mut runner = TestRunner::deterministic();
        let found = (0..2000).any(|_| {
            let (_, offsets, fates) =
                proptest::strategy::ValueTree::current(&life().new_tree(&mut runner).unwrap());
            two_leaders(timing, rates, offsets, &fates).0
        });
        assert!(found, "{timing:?} {rates:?}");
    }
}
