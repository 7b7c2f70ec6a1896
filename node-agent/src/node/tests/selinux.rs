//! The label of a mount. Guests have SELinux off, for speed; `make selinux` boots one that has
//! it, with a policy that knows the labels in here, for the tests that are ignored elsewhere.

use super::*;

const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";
const OTHER: &str = "system_u:object_r:container_file_t:s0:c1,c3";

fn labelled(kind: &str, label: &str) -> VolumeCapability {
    fs_with(kind, &["noatime", &format!("context=\"{label}\"")])
}

#[tokio::test(flavor = "multi_thread")]
async fn without_selinux_a_label_is_refused_before_anything_is_done() {
    let host = Host::new();
    let refused = host.stage(labelled("ext4", LABEL)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("SELinux is not enabled on this node"), "{refused}");
    assert!(host.sessions.views().is_empty() && host.record().is_none());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SELinux and its policy: make selinux"]
async fn a_label_is_mounted_and_kept_to() {
    for kind in ["ext4", "ext3", "xfs", "btrfs"] {
        let host = Host::new();
        for _ in 0..2 {
            host.stage(labelled(kind, LABEL)).await.unwrap();
        }
        assert!(host.mountinfo().contains(&format!("context=\"{LABEL}\"")), "{}", host.mountinfo());
        assert_eq!(code(host.stage(labelled(kind, OTHER)).await), Code::AlreadyExists);
        assert_eq!(code(host.stage(fs_with(kind, &["noatime"])).await), Code::AlreadyExists);
        // The same in other words, as the kernel has it from another pod.
        let again = "system_u:object_r:container_file_t:s0:c2,c1";
        host.publish("target", labelled(kind, again), false).await.unwrap();
        let refused = host.publish("another", labelled(kind, OTHER), false).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        assert_eq!(host.layers("another"), 0);
        fs::write(host.path("target/data"), "x").unwrap();
        let label = run("stat", &["-c", "%C", &host.path("target/data")]);
        assert_eq!(label, LABEL, "{kind}");
        // An agent that was killed between mounting and noting it.
        let mut record = host.record().unwrap();
        record.step = Step::Mounting;
        host.journal.put(Table::Stages, VOLUME, &record).unwrap();
        assert_eq!(code(host.stage(labelled(kind, OTHER)).await), Code::AlreadyExists);
        host.stage(labelled(kind, LABEL)).await.unwrap();
        host.unpublish("target").await.unwrap();
        host.unstage().await.unwrap();
        // For the next pod.
        host.stage(labelled(kind, OTHER)).await.unwrap();
        assert!(host.mountinfo().contains(OTHER), "{}", host.mountinfo());
        host.unstage().await.unwrap();
    }
}

/// A label that the node's policy does not know.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SELinux and its policy: make selinux"]
async fn a_label_that_the_policy_refuses_leaves_nothing_mounted() {
    let host = Host::new();
    let refused = host.stage(labelled("ext4", "system_u:object_r:nobodys_t:s0")).await.unwrap_err();
    assert!(refused.message().contains("mount"), "{refused}");
    assert_eq!(host.layers("staging"), 0);
    host.stage(labelled("ext4", LABEL)).await.unwrap();
}
