//! A session's life, told as stories against the pure machine.

#![allow(clippy::unwrap_used)]

use super::*;

const KEEP_ALIVE: Millis = 5_000;

struct Story {
    machine: Machine,
    now: Millis,
}

fn namespace(minor: u32, wwid: &str) -> Namespace {
    Namespace {
        name: format!("nvme0n{minor}"),
        number: DeviceNumber { major: 259, minor },
        size_bytes: 1 << 30,
        wwid: wwid.into(),
    }
}

fn controller(state: ControllerState, namespace: Option<Namespace>) -> Controller {
    Controller {
        name: "nvme0".into(),
        nqn: "nqn.a".into(),
        host_nqn: "host".into(),
        address: String::new(),
        cntlid: "1".into(),
        state,
        namespace,
    }
}

fn shield(minor: u32, path_active: bool) -> ShieldSeen {
    ShieldSeen {
        number: DeviceNumber { major: 253, minor: 0 },
        path: Some(DeviceNumber { major: 259, minor }),
        path_active,
        suspended: false,
        size_bytes: 1 << 30,
    }
}

impl Story {
    fn new() -> Self {
        let config = Config {
            host_nqn: "host".into(),
            shield: true,
            keep_alive: KEEP_ALIVE,
            io_timeout: None,
            jitter: 7,
        };
        Self { machine: Machine::new(config, 0), now: 0 }
    }

    fn sees(&mut self, controllers: &[&Controller], shield: Option<ShieldSeen>) -> Option<Action> {
        self.now += 1;
        let look = Observation {
            taken_at: self.now,
            controllers: controllers.iter().map(|c| (*c).clone()).collect(),
            shield,
        };
        self.machine.step(Event::Observed(look), self.now)
    }

    fn done(&mut self, outcome: Outcome) -> Option<Action> {
        self.now += 1;
        self.machine.step(Event::Done(outcome), self.now)
    }

    fn wait(&mut self, ms: Millis) -> &mut Self {
        self.now += ms;
        self
    }

    /// A session that is live on namespace 1.
    fn live() -> Self {
        let mut story = Self::new();
        assert_eq!(story.sees(&[], None), Some(Action::Connect));
        story.done(Outcome::Connected(Ok(())));
        let up = controller(ControllerState::Live, Some(namespace(1, "w1")));
        assert_eq!(story.sees(&[&up], None), Some(Action::Map(namespace(1, "w1"))));
        story.done(Outcome::Mapped(namespace(1, "w1")));
        assert_eq!(story.sees(&[&up], Some(shield(1, true))), None);
        assert_eq!(story.machine.state(), State::Live);
        story
    }
}

#[test]
fn a_changed_identity_is_rescanned_and_mapped_at_once() {
    let mut story = Story::live();
    let bare = controller(ControllerState::Live, None);
    assert_eq!(story.sees(&[&bare], Some(shield(1, false))), Some(Action::Rescan("nvme0".into())));
    assert_eq!(story.machine.state(), State::Lost);
    story.done(Outcome::Rescanned);
    let back = controller(ControllerState::Live, Some(namespace(2, "w2")));
    // No wait for old writes: another wwid proves that the old export is gone.
    assert_eq!(story.sees(&[&back], Some(shield(1, false))), Some(Action::Map(namespace(2, "w2"))));
    story.done(Outcome::Mapped(namespace(2, "w2")));
    story.sees(&[&back], Some(shield(2, true)));
    assert_eq!(story.machine.state(), State::Live);
    assert_eq!(story.machine.outages(), 1);
}

#[test]
fn a_removed_controller_is_connected_again_at_once_and_then_with_backoff() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    let failure =
        ConnectFailure { reason: "refused".into(), port_closed: true, host_refused: false };
    let mut pauses = Vec::new();
    for _ in 0..8 {
        story.done(Outcome::Connected(Err(failure.clone())));
        assert_eq!(story.machine.state(), State::Backoff);
        let from = story.now;
        while story.sees(&[], Some(shield(1, false))) != Some(Action::Connect) {
            assert!(story.now - from < 2 * BACKOFF_LAST, "never gives up");
        }
        pauses.push(story.now - from);
    }
    assert!(pauses[0] <= BACKOFF_FIRST + 2 && pauses[7] >= BACKOFF_LAST / 2, "{pauses:?}");
}

#[test]
fn the_same_export_gets_no_io_before_its_old_writes_are_gone() {
    let mut story = Story::live();
    let lost_at = story.now;
    story.sees(&[&controller(ControllerState::Connecting, None)], Some(shield(1, false)));
    assert_eq!(story.machine.state(), State::Degraded);
    let back = controller(ControllerState::Live, Some(namespace(1, "w1")));
    assert_eq!(story.sees(&[&back], Some(shield(1, false))), None, "a reset a moment ago");
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN);
    assert_eq!(story.sees(&[&back], Some(shield(1, false))), Some(Action::Map(namespace(1, "w1"))));
    assert!(story.now - lost_at > KEEP_ALIVE);
}

#[test]
fn a_closed_port_proves_that_old_writes_are_gone() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    let closed =
        ConnectFailure { reason: "refused".into(), port_closed: true, host_refused: false };
    story.done(Outcome::Connected(Err(closed)));
    story.wait(BACKOFF_LAST);
    let back = controller(ControllerState::Live, Some(namespace(1, "w1")));
    assert_eq!(story.sees(&[&back], Some(shield(1, false))), Some(Action::Map(namespace(1, "w1"))));
}

#[test]
fn rescans_without_result_end_in_a_new_controller() {
    let mut story = Story::live();
    let bare = controller(ControllerState::Live, None);
    let mut rescans = 0;
    loop {
        story.wait(RESCAN_EVERY);
        match story.sees(&[&bare], Some(shield(1, false))) {
            Some(Action::Rescan(_)) => rescans += 1,
            Some(Action::Delete(name)) => {
                assert_eq!((name.as_str(), rescans), ("nvme0", RESCANS));
                break;
            }
            other => panic!("{other:?}"),
        }
        story.done(Outcome::Rescanned);
    }
}

#[test]
fn another_volumes_content_blocks_and_stays_blocked() {
    let mut story = Story::live();
    let other = controller(ControllerState::Live, Some(namespace(2, "w2")));
    assert_eq!(
        story.sees(&[&other], Some(shield(1, false))),
        Some(Action::Map(namespace(2, "w2")))
    );
    story.done(Outcome::Different("it holds another file system".into()));
    assert_eq!(story.machine.state(), State::Blocked);
    story.wait(100_000);
    assert_eq!(story.sees(&[&other], Some(shield(1, false))), None);
    // A person has put it right and says so.
    story.machine.step(Event::Reconnect, story.now);
    assert!(matches!(story.sees(&[&other], Some(shield(1, false))), Some(Action::Map(_)) | None));
    assert_ne!(story.machine.state(), State::Blocked);
}

#[test]
fn a_host_that_is_refused_after_having_been_live_is_fenced_for_good() {
    let mut story = Story::live();
    story.sees(&[], Some(shield(1, false)));
    let refused = ConnectFailure { reason: "host".into(), port_closed: false, host_refused: true };
    story.done(Outcome::Connected(Err(refused)));
    assert_eq!(story.machine.state(), State::Fenced);
    story.wait(1_000_000);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
    story.machine.step(Event::Reconnect, story.now);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
}

#[test]
fn an_earlier_attachments_controller_is_deleted() {
    let mut story = Story::new();
    let old = Controller { host_nqn: "older".into(), ..controller(ControllerState::Live, None) };
    assert_eq!(story.sees(&[&old], None), Some(Action::Delete("nvme0".into())));
}

#[test]
fn a_look_from_before_the_last_action_is_not_believed() {
    let mut story = Story::live();
    story.sees(&[], Some(shield(1, false)));
    story.wait(10).done(Outcome::Connected(Ok(())));
    let stale = Observation { taken_at: story.now - 5, controllers: vec![], shield: None };
    assert_eq!(story.machine.step(Event::Observed(stale), story.now), None, "no second controller");
}

#[test]
fn waiting_io_fails_only_after_its_time() {
    let mut story = Story::live();
    story.machine.config.io_timeout = Some(10_000);
    let down = controller(ControllerState::Connecting, None);
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), None);
    story.wait(9_900);
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), None);
    story.wait(200);
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Ok(())));
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), None, "once");
    assert!(story.machine.failing_io());
}

#[test]
fn draining_does_nothing_more_until_it_is_refused() {
    let mut story = Story::live();
    story.machine.step(Event::Drain { begun: true }, story.now);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
    let refused = story.machine.step(Event::Drain { begun: false }, story.now);
    assert_eq!(refused, Some(Action::Connect), "it goes on where it was");
}

#[test]
fn a_suspended_or_smaller_shield_is_mended() {
    let mut story = Story::live();
    let up = controller(ControllerState::Live, Some(namespace(1, "w1")));
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN + 10);
    let suspended = ShieldSeen { suspended: true, ..shield(1, true) };
    assert!(matches!(story.sees(&[&up], Some(suspended)), Some(Action::Map(_))));
    story.done(Outcome::Mapped(namespace(1, "w1")));
    let grown = Namespace { size_bytes: 2 << 30, ..namespace(1, "w1") };
    let up = controller(ControllerState::Live, Some(grown.clone()));
    assert_eq!(
        story.sees(&[&up], Some(shield(1, true))),
        Some(Action::Map(grown)),
        "no wait to grow"
    );
}
