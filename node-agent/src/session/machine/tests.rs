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
        queueing: true,
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
            shared: false,
            gate_after: Millis::MAX,
        };
        Self { machine: Machine::new(config, 0), now: 0 }
    }

    /// The same as [`Self::live`], where the attachment can be asked for.
    fn gated(shared: bool) -> Self {
        let mut story = Self::live();
        story.machine.config.shared = shared;
        story.machine.config.gate_after = 60_000;
        story
    }

    /// The controller goes; after this long another is made, and its old writes are gone.
    fn comes_back_after(&mut self, ms: Millis) -> Option<Action> {
        assert_eq!(self.sees(&[], Some(shield(1, false))), Some(Action::Connect));
        self.wait(ms).done(Outcome::Connected(Ok(())));
        self.sees(&[&another()], Some(shield(1, false)))
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

    fn portal(&mut self, seen: PortalSeen) -> Option<Action> {
        self.now += 1;
        self.machine.step(Event::Portal(seen), self.now)
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
        story.wait(decide::RESCAN_EVERY);
        match story.sees(&[&bare], Some(shield(1, false))) {
            Some(Action::Rescan(_)) => rescans += 1,
            Some(Action::Delete(name)) => {
                assert_eq!((name.as_str(), rescans), ("nvme0", decide::RESCANS));
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
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Ok(())));
    let fails = ShieldSeen { queueing: false, ..shield(1, false) };
    assert_eq!(story.wait(1_000_000).sees(&[], Some(fails.clone())), None);
    story.machine.step(Event::Reconnect, story.now);
    assert_eq!(story.sees(&[], Some(fails)), None);
}

/// A session without a shield whose controller has been `connecting` for so long that the
/// target is asked.
fn asking() -> (Story, Controller) {
    let mut story = Story::new();
    story.machine.config.shield = false;
    assert_eq!(story.sees(&[], None), Some(Action::Connect));
    story.done(Outcome::Connected(Ok(())));
    assert_eq!(story.sees(&[&up()], None), Some(Action::Map(namespace(1, "w1"))));
    story.done(Outcome::Mapped(namespace(1, "w1")));
    assert_eq!(story.sees(&[&up()], None), None);
    assert_eq!(story.machine.state(), State::Live);
    assert_eq!(story.sees(&[&down()], None), None);
    assert_eq!(story.wait(decide::ASK_EVERY - 10).sees(&[&down()], None), None);
    assert_eq!(story.wait(10).sees(&[&down()], None), Some(Action::AskTarget));
    (story, down())
}

fn refused_host() -> ConnectFailure {
    let reason = "Connect Invalid Host".to_owned();
    ConnectFailure { reason, port_closed: false, host_refused: true }
}

#[test]
fn a_refused_host_is_fenced_although_the_kernel_goes_on_trying() {
    let (mut story, down) = asking();
    story.done(Outcome::Asked(Some(refused_host())));
    assert_eq!(story.machine.state(), State::Fenced);
    assert_eq!(story.sees(&[&down], None), Some(Action::Delete("nvme0".into())));
    story.done(Outcome::Deleted);
    let going = controller(ControllerState::Deleting, None);
    assert_eq!(story.sees(&[&going], None), None);
    assert_eq!(story.wait(100_000).sees(&[], None), None);
    assert_eq!(story.machine.state(), State::Fenced);
}

#[test]
fn what_is_not_exported_at_this_moment_is_waited_for() {
    let (mut story, down) = asking();
    let reason = "no such subsystem".to_owned();
    let absent = ConnectFailure { reason, port_closed: false, host_refused: false };
    story.done(Outcome::Asked(Some(absent)));
    assert_eq!(story.sees(&[&down], None), None);
    assert_eq!(story.machine.state(), State::Degraded);
    assert_eq!(story.machine.reason(), "nvme0 is connecting: no such subsystem");
    // Asked again, and an answer that could not be had changes nothing.
    let action = story.wait(decide::ASK_EVERY).sees(&[&down], None);
    assert_eq!(action, Some(Action::AskTarget));
    story.done(Outcome::Asked(None));
    assert_eq!(story.sees(&[&down], None), None);
    assert_eq!(story.machine.state(), State::Degraded);
    // The next outage begins to count anew.
    assert_eq!(story.sees(&[&up()], None), None);
    assert_eq!(story.wait(decide::ASK_EVERY).sees(&[&down], None), None);
}

#[test]
fn a_controller_that_cannot_reconnect_is_given_up_so_that_the_return_is_not_missed() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
    assert_eq!(story.portal(PortalSeen::Silent), Some(Action::GiveUp("nvme0".into())));
    story.done(Outcome::Deleted);
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    let silent = ConnectFailure { reason: "x".into(), port_closed: false, host_refused: false };
    for _ in 0..8 {
        story.done(Outcome::Connected(Err(silent.clone())));
        story.wait(BACKOFF_LAST + 1);
        assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    }
    story.done(Outcome::Connected(Err(silent)));
    assert_eq!(story.machine.state(), State::Backoff);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
    assert_eq!(story.portal(PortalSeen::Answers), Some(Action::Connect), "not after the pause");
}

#[test]
fn a_controller_that_only_does_not_get_through_has_some_seconds() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
    assert_eq!(story.portal(PortalSeen::Answers), None);
    story.wait(decide::TAKE_OVER - 10);
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
    story.wait(10);
    let action = story.sees(&[&down()], Some(shield(1, false)));
    assert_eq!(action, Some(Action::GiveUp("nvme0".into())));
}

#[test]
fn the_next_session_waits_for_the_writes_of_one_that_was_taken_down_without_a_connection() {
    let mut lost = Story::live();
    assert_eq!(lost.machine.writes_linger_until(), None, "its end is their end");
    lost.wait(1_000);
    lost.sees(&[&down()], Some(shield(1, false)));
    let until = lost.machine.writes_linger_until().unwrap();
    assert_eq!(until, lost.now + KEEP_ALIVE + KEEP_ALIVE_MARGIN);

    let mut next = Story::new();
    next.now = lost.now;
    next.machine.inherit_writes(until);
    assert_eq!(next.sees(&[], None), Some(Action::Connect));
    next.done(Outcome::Connected(Ok(())));
    assert_eq!(next.sees(&[&up()], None), None);
    next.now = until - 1;
    assert_eq!(next.sees(&[&up()], None), None);
    // It cannot tell these from its own, so it counts from its first look.
    next.wait(10);
    assert_eq!(next.sees(&[&up()], None), Some(Action::Map(namespace(1, "w1"))));
}

#[test]
fn of_two_live_controllers_with_one_path_the_first_is_kept() {
    let mut story = Story::new();
    assert_eq!(story.sees(&[], None), Some(Action::Connect));
    story.done(Outcome::Connected(Ok(())));
    let ours = Controller { name: "nvme3".into(), ..up() };
    assert!(matches!(story.sees(&[&ours], None), Some(Action::Map(_))));
    story.done(Outcome::Mapped(namespace(1, "w1")));
    story.sees(&[&ours], Some(shield(1, true)));
    assert_eq!(story.machine.state(), State::Live);
    // Made by hand; it has a lower name, and native multipath gives both one namespace.
    let by_hand = Controller { cntlid: "2".into(), ..up() };
    let action = story.sees(&[&by_hand, &ours], Some(shield(1, true)));
    assert_eq!(action, Some(Action::Delete("nvme0".into())));
}

#[test]
fn waiting_io_whose_time_is_over_does_not_wait_for_another_attempt() {
    let mut story = Story::live();
    story.machine.config.io_timeout = Some(1_000);
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    let silent = ConnectFailure { reason: "x".into(), port_closed: false, host_refused: false };
    story.wait(2_000).done(Outcome::Connected(Err(silent)));
    story.wait(BACKOFF_LAST);
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::FailIo));
}

#[test]
fn without_a_shield_the_controller_is_never_given_up() {
    let (mut story, down) = asking();
    story.done(Outcome::Asked(None));
    story.portal(PortalSeen::Silent);
    for _ in 0..10 {
        let action = story.wait(1_000).sees(&[&down], None);
        assert!(matches!(action, None | Some(Action::AskTarget)), "{action:?}");
        story.done(Outcome::Asked(None));
    }
}

#[test]
fn attempts_are_frequent_for_a_while_after_the_portal_has_begun_to_answer() {
    let mut story = Story::live();
    let absent = ConnectFailure { reason: "x".into(), port_closed: false, host_refused: false };
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    for _ in 0..10 {
        story.done(Outcome::Connected(Err(absent.clone())));
        story.wait(BACKOFF_LAST + 1);
        assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    }
    story.portal(PortalSeen::Answers);
    story.done(Outcome::Connected(Err(absent.clone())));
    story.wait(BACKOFF_BOOTING + 1);
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    story.wait(BOOTING).done(Outcome::Connected(Err(absent)));
    story.wait(BACKOFF_BOOTING + 1);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
}

#[test]
fn what_waits_in_a_fenced_session_fails_before_anything_else() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    story.done(Outcome::Connected(Err(refused_host())));
    assert_eq!(story.machine.state(), State::Fenced);
    // A controller that the kernel still retries must not keep the queue waiting.
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Ok(())));
    let fails = ShieldSeen { queueing: false, ..shield(1, false) };
    let delete = Some(Action::Delete("nvme0".into()));
    assert_eq!(story.sees(&[&down()], Some(fails.clone())), delete);
    story.done(Outcome::Deleted);
    assert_eq!(story.sees(&[], Some(fails)), None);
}

#[test]
fn a_refusal_that_comes_after_unstage_began_does_not_undo_it() {
    let (mut story, _) = asking();
    story.machine.step(Event::Drain { begun: true }, story.now);
    let refused = ConnectFailure { reason: "x".into(), port_closed: false, host_refused: true };
    story.done(Outcome::Asked(Some(refused)));
    assert_eq!(story.machine.state(), State::Draining);
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
    let give_up = Some(Action::GiveUp("nvme0".into()));
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), give_up);
    story.done(Outcome::Deleted);
    story.wait(200);
    assert_eq!(story.sees(&[&down], Some(shield(1, false))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Ok(())));
    let fails = ShieldSeen { queueing: false, ..shield(1, false) };
    assert_eq!(story.sees(&[&down], Some(fails)), None, "once");
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

// What the simulation (tests/session_simulation) has found.

fn down() -> Controller {
    controller(ControllerState::Connecting, Some(namespace(1, "w1")))
}

fn up() -> Controller {
    controller(ControllerState::Live, Some(namespace(1, "w1")))
}

#[test]
fn old_writes_count_from_the_look_that_shows_the_loss() {
    let mut story = Story::live();
    // The loss may have come at any time after the last good look.
    story.wait(3_000);
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN - 10);
    assert_eq!(story.sees(&[&up()], Some(shield(1, false))), None);
    story.wait(10);
    assert!(matches!(story.sees(&[&up()], Some(shield(1, false))), Some(Action::Map(_))));
}

#[test]
fn a_path_that_is_lost_right_after_its_mapping_waits_again() {
    let mut story = Story::live();
    story.sees(&[&down()], Some(shield(1, false)));
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN);
    assert!(matches!(story.sees(&[&up()], Some(shield(1, false))), Some(Action::Map(_))));
    // I/O flowed for a moment that no look has seen.
    story.done(Outcome::Mapped(namespace(1, "w1")));
    assert_eq!(story.sees(&[&up()], Some(shield(1, false))), None);
    // The same if the mapping was reported as failed after it had taken effect.
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN);
    assert!(matches!(story.sees(&[&up()], Some(shield(1, false))), Some(Action::Map(_))));
    story.done(Outcome::MapFailed("the shield could not be read".into()));
    story.wait(MAP_RETRY);
    assert_eq!(story.sees(&[&up()], Some(shield(1, false))), None);
}

#[test]
fn a_new_export_that_may_have_had_io_is_no_new_export() {
    let mut story = Story::live();
    let second = controller(ControllerState::Live, Some(namespace(2, "w2")));
    assert!(matches!(story.sees(&[&second], Some(shield(1, false))), Some(Action::Map(_))));
    story.done(Outcome::MapFailed("the shield could not be read".into()));
    story.wait(MAP_RETRY);
    // The path shows that it was mapped; lost again since, and it has another number now.
    let third = controller(ControllerState::Live, Some(namespace(3, "w2")));
    assert_eq!(story.sees(&[&third], Some(shield(2, false))), None);
}

#[test]
fn a_first_look_that_comes_late_after_a_restart_begins_the_wait() {
    let mut story = Story::new();
    story.wait(60_000);
    assert_eq!(story.sees(&[&up()], Some(shield(1, false))), None);
    story.wait(KEEP_ALIVE + KEEP_ALIVE_MARGIN);
    assert!(matches!(story.sees(&[&up()], Some(shield(1, false))), Some(Action::Map(_))));
}

#[test]
fn a_shield_that_fails_io_queues_again_before_it_is_called_live() {
    let mut story = Story::live();
    // Idle: no write fails the path, and the kernel brings it back by itself.
    story.machine.config.io_timeout = Some(1_000);
    assert_eq!(story.sees(&[&down()], Some(shield(1, true))), None);
    story.wait(1_100);
    assert_eq!(story.sees(&[&down()], Some(shield(1, true))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Ok(())));
    let again = Some(Action::Map(namespace(1, "w1")));
    let fails = ShieldSeen { queueing: false, ..shield(1, true) };
    assert_eq!(story.sees(&[&up()], Some(fails.clone())), again);
    assert_ne!(story.machine.state(), State::Live);
    // Not by a mapping that failed either.
    story.done(Outcome::MapFailed("it could not be read".into()));
    story.wait(MAP_RETRY);
    assert_eq!(story.sees(&[&up()], Some(fails)), again);
    story.done(Outcome::Mapped(namespace(1, "w1")));
    assert_eq!(story.sees(&[&up()], Some(shield(1, true))), None);
    assert_eq!(story.machine.state(), State::Live);
}

#[test]
fn the_time_until_io_fails_begins_anew_when_it_has_flowed() {
    let mut story = Story::live();
    story.machine.config.io_timeout = Some(10_000);
    story.sees(&[&down()], Some(shield(1, false)));
    story.wait(9_000);
    assert!(matches!(story.sees(&[&up()], Some(shield(1, false))), Some(Action::Map(_))));
    story.done(Outcome::Mapped(namespace(1, "w1")));
    story.wait(2_000);
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
}

#[test]
fn what_ends_during_unstage_does_not_undo_it() {
    let mut story = Story::live();
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    story.machine.step(Event::Drain { begun: true }, story.now);
    let failure = ConnectFailure { reason: "x".into(), port_closed: false, host_refused: false };
    story.done(Outcome::Connected(Err(failure)));
    story.wait(BACKOFF_LAST);
    assert_eq!(story.sees(&[], Some(shield(1, false))), None);
    assert_eq!(story.machine.state(), State::Draining);
}

#[test]
fn what_was_fenced_or_blocked_is_so_again_when_unstage_is_refused() {
    for (outcome, state) in [
        (Outcome::Different("another".into()), State::Blocked),
        (
            Outcome::Connected(Err(ConnectFailure {
                reason: "host".into(),
                port_closed: false,
                host_refused: true,
            })),
            State::Fenced,
        ),
    ] {
        // Before unstage began, and after.
        for late in [false, true] {
            let mut story = Story::live();
            story.sees(&[], Some(shield(1, false)));
            if !late {
                story.done(outcome.clone());
            }
            story.machine.step(Event::Drain { begun: true }, story.now);
            if late {
                story.done(outcome.clone());
            }
            assert_eq!(story.sees(&[], Some(shield(1, false))), None);
            assert_eq!(story.machine.state(), State::Draining);
            let refused = story.machine.step(Event::Drain { begun: false }, story.now);
            let next = (state == State::Fenced).then_some(Action::FailIo);
            assert_eq!((refused, story.machine.state()), (next, state));
        }
    }
}

#[test]
fn what_the_kernel_refuses_at_once_is_not_repeated_at_once() {
    let mut story = Story::new();
    let old = Controller { host_nqn: "older".into(), ..controller(ControllerState::New, None) };
    let delete = Some(Action::Delete("nvme0".into()));
    assert_eq!(story.sees(&[&old], None), delete);
    story.done(Outcome::Deleted);
    assert_eq!(story.sees(&[&old], None), None, "it is being made and cannot be deleted yet");
    assert_eq!(story.wait(REPEAT_EVERY).sees(&[&old], None), delete);

    let mut story = Story::live();
    story.machine.config.io_timeout = Some(1);
    story.sees(&[&down()], Some(shield(1, false)));
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), Some(Action::FailIo));
    story.done(Outcome::FailedIo(Err("no".into())));
    assert_eq!(story.sees(&[&down()], Some(shield(1, false))), None);
    let failed = story.wait(REPEAT_EVERY).sees(&[&down()], Some(shield(1, false)));
    assert_eq!(failed, Some(Action::FailIo));

    let mut story = Story::new();
    story.machine.config.shield = false;
    assert!(matches!(story.sees(&[&up()], None), Some(Action::Map(_))));
    story.done(Outcome::MapFailed("no".into()));
    assert_eq!(story.sees(&[&up()], None), None);
}

#[test]
fn a_look_in_the_millisecond_of_an_actions_end_is_not_believed() {
    let mut story = Story::live();
    story.sees(&[], Some(shield(1, false)));
    story.wait(1_000).done(Outcome::Connected(Ok(())));
    let look = Observation { taken_at: story.now, controllers: vec![], shield: None };
    assert_eq!(story.machine.step(Event::Observed(look), story.now + 2_000), None);
}

#[test]
fn a_restarted_agent_knows_that_it_is_fenced_and_that_io_fails() {
    let mut story = Story::new();
    // What an earlier agent left: a shield without a working path, which fails I/O.
    let left = ShieldSeen { queueing: false, ..shield(1, false) };
    assert_eq!(story.sees(&[], Some(left)), Some(Action::Connect));
    assert!(story.machine.failing_io());
    let refused = ConnectFailure { reason: "host".into(), port_closed: false, host_refused: true };
    story.done(Outcome::Connected(Err(refused)));
    assert_eq!(story.machine.state(), State::Fenced);
}

#[test]
fn a_live_session_whose_shield_fails_io_is_made_to_queue_again() {
    let mut story = Story::live();
    let up = controller(ControllerState::Live, Some(namespace(1, "w1")));
    let fails = ShieldSeen { queueing: false, ..shield(1, true) };
    assert_eq!(story.sees(&[&up], Some(fails)), Some(Action::Map(namespace(1, "w1"))));
}

#[test]
fn of_two_live_controllers_the_one_that_carries_the_io_is_kept() {
    let mut story = Story::live();
    let ours = Controller {
        name: "nvme5".into(),
        ..controller(ControllerState::Live, Some(namespace(1, "w1")))
    };
    let by_hand = controller(ControllerState::Live, Some(namespace(2, "w1")));
    let action = story.sees(&[&by_hand, &ours], Some(shield(1, true)));
    assert_eq!(action, Some(Action::Delete("nvme0".into())), "not the one in use");
}

fn another() -> Controller {
    Controller {
        name: "nvme1".into(),
        cntlid: "2".into(),
        ..controller(ControllerState::Live, Some(namespace(2, "w1")))
    }
}

#[test]
fn a_short_loss_of_an_exclusive_volume_asks_nobody() {
    let mut story = Story::gated(false);
    assert_eq!(story.comes_back_after(20_000), Some(Action::Map(namespace(2, "w1"))));
}

#[test]
fn after_a_long_loss_the_attachment_is_asked_for_on_the_new_connection() {
    let mut story = Story::gated(false);
    assert_eq!(story.comes_back_after(61_000), Some(Action::AskAttachment));
    story.done(Outcome::Attachment(Attachment::Exists));
    let back = story.sees(&[&another()], Some(shield(1, false)));
    assert_eq!(back, Some(Action::Map(namespace(2, "w1"))));

    // An answer that is old, or of an earlier connection, counts for nothing.
    let mut story = Story::gated(false);
    story.comes_back_after(61_000);
    story.done(Outcome::Attachment(Attachment::Exists));
    let third = Controller { cntlid: "3".into(), ..another() };
    let back = story.sees(&[&third], Some(shield(1, false)));
    assert_eq!(back, Some(Action::AskAttachment));
    story.done(Outcome::Attachment(Attachment::Exists));
    let back = story.wait(11_000).sees(&[&third], Some(shield(1, false)));
    assert_eq!(back, Some(Action::AskAttachment));
}

#[test]
fn an_attachment_that_is_gone_fences() {
    for shared in [false, true] {
        let mut story = Story::gated(shared);
        assert_eq!(story.comes_back_after(61_000), Some(Action::AskAttachment));
        story.done(Outcome::Attachment(Attachment::Gone("it was deleted".into())));
        assert_eq!(story.machine.state(), State::Fenced);
        // Its queue is failed, and nothing is given back.
        assert_eq!(story.sees(&[&another()], Some(shield(1, false))), Some(Action::FailIo));
        story.done(Outcome::FailedIo(Ok(())));
        let failing = ShieldSeen { queueing: false, ..shield(1, false) };
        let next = story.sees(&[&another()], Some(failing));
        assert_eq!(next, Some(Action::Delete("nvme1".into())));
    }
}

#[test]
fn what_nobody_knows_keeps_a_shared_volume_waiting_and_no_other() {
    let unknown = || Outcome::Attachment(Attachment::Unknown("no API server".into()));
    let mut story = Story::gated(false);
    story.comes_back_after(61_000);
    story.done(unknown());
    let back = story.sees(&[&another()], Some(shield(1, false)));
    assert_eq!(back, Some(Action::Map(namespace(2, "w1"))));

    // A shared one is asked for however short the loss, and again and again.
    let mut story = Story::gated(true);
    assert_eq!(story.comes_back_after(7_000), Some(Action::AskAttachment));
    for _ in 0..20 {
        story.done(unknown());
        assert_eq!(story.sees(&[&another()], Some(shield(1, false))), None);
        assert!(story.machine.reason().contains("no API server"));
        let next = story.wait(5_000).sees(&[&another()], Some(shield(1, false)));
        assert_eq!(next, Some(Action::AskAttachment));
    }
    story.done(Outcome::Attachment(Attachment::Exists));
    let back = story.sees(&[&another()], Some(shield(1, false)));
    assert_eq!(back, Some(Action::Map(namespace(2, "w1"))));
}

/// As seen in a guest: both the kernel's name and the target's number come again.
#[test]
fn an_answer_does_not_serve_the_next_connection_of_the_same_name_and_number() {
    let mut story = Story::gated(true);
    assert_eq!(story.comes_back_after(7_000), Some(Action::AskAttachment));
    story.done(Outcome::Attachment(Attachment::Exists));
    let back = story.sees(&[&another()], Some(shield(1, false)));
    assert_eq!(back, Some(Action::Map(namespace(2, "w1"))));
    story.done(Outcome::Mapped(namespace(2, "w1")));
    assert_eq!(story.sees(&[&another()], Some(shield(2, true))), None);
    assert_eq!(story.machine.state(), State::Live);
    // Lost and found again within seconds, with another export.
    let again = Controller { namespace: Some(namespace(3, "w2")), ..another() };
    assert_eq!(story.sees(&[], Some(shield(2, false))), Some(Action::Connect));
    story.done(Outcome::Connected(Ok(())));
    let back = story.sees(&[&again], Some(shield(2, false)));
    assert_eq!(back, Some(Action::AskAttachment));
    // It is lost between the answer and the mapping.
    story.done(Outcome::Attachment(Attachment::Exists));
    assert_eq!(story.wait(1_000).sees(&[], Some(shield(2, false))), Some(Action::Connect));
    story.done(Outcome::Connected(Ok(())));
    let back = story.sees(&[&again], Some(shield(2, false)));
    assert_eq!(back, Some(Action::AskAttachment));
}

#[test]
fn a_shared_volume_is_asked_for_before_its_first_write_too() {
    let mut story = Story::new();
    story.machine.config.shared = true;
    assert_eq!(story.sees(&[], None), Some(Action::Connect));
    story.done(Outcome::Connected(Ok(())));
    let up = controller(ControllerState::Live, Some(namespace(1, "w1")));
    assert_eq!(story.sees(&[&up], None), Some(Action::AskAttachment));
    story.done(Outcome::Attachment(Attachment::Exists));
    assert_eq!(story.sees(&[&up], None), Some(Action::Map(namespace(1, "w1"))));
}

#[test]
fn an_export_that_stays_away_is_asked_about_now_and_then() {
    let mut story = Story::gated(false);
    let refused = ConnectFailure {
        reason: "no such subsystem".into(),
        port_closed: false,
        host_refused: false,
    };
    assert_eq!(story.sees(&[], Some(shield(1, false))), Some(Action::Connect));
    let (mut asked, mut tried) = (Vec::new(), 0);
    for _ in 0..1_500 {
        story.wait(100);
        match story.sees(&[], Some(shield(1, false))) {
            Some(Action::Connect) => {
                tried += 1;
                story.done(Outcome::Connected(Err(refused.clone())));
            }
            Some(Action::AskAttachment) => {
                asked.push(story.now);
                story.done(Outcome::Attachment(Attachment::Exists));
            }
            other => assert_eq!(other, None),
        }
        if tried == 0 {
            story.done(Outcome::Connected(Err(refused.clone())));
            tried = 1;
        }
    }
    // In 150 s: after 60, 90 and 120, and it is tried all the while.
    assert!((3..=4).contains(&asked.len()) && asked[0] >= 60_000, "{asked:?}");
    assert!(tried > 50, "{tried}");
}
