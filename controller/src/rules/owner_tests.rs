#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use rds_csi_proto::ids::HostNqn;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

fn tag(stage: Stage) -> OwnerTag {
    OwnerTag {
        cluster: "lab".parse().unwrap(),
        volume: ID.parse().unwrap(),
        class: Some(ClassHash::of([("shield", "true")].into_iter())),
        notes: Notes::default(),
        stage,
    }
}

#[test]
fn a_tag_is_written_as_documented_and_read_back() {
    let host: HostNqn =
        "nqn.2014-08.org.nvmexpress:uuid:3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11".parse().unwrap();
    let node = NodeKey::of(&"node-1".parse().unwrap());
    let attached =
        tag(Stage::Attached(Attachment::new(node, host, Sharing::Exclusive, 1_700_000_000)));
    let class = &attached.class.as_ref().unwrap().0;
    assert_eq!(
        attached.to_string(),
        format!(
            "rds-csi v1 cluster=lab vol={ID} class={class} stage=attached node=node-1 \
             host=3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11 mode=rwo since=1700000000"
        )
    );
    let from = |id: &str| Stage::Filling(id.parse().unwrap());
    for t in [
        attached,
        tag(Stage::Ready),
        tag(Stage::Deleting),
        tag(from(ID)),
        tag(from(&ID.replace("pvc", "snap"))),
    ] {
        assert!(OwnerTag::may_be_of(&t.to_string(), &t.cluster));
        // Neither one that begins like it nor one that ends sooner.
        for other in ["la", "labs"] {
            assert!(!OwnerTag::may_be_of(&t.to_string(), &other.parse().unwrap()));
        }
        assert_eq!(OwnerTag::parse(&t.to_string()), Some(t));
    }
}

#[test]
fn anything_else_is_not_ours() {
    let good = tag(Stage::Ready).to_string();
    for bad in [
        String::new(),
        "mine, do not touch".into(),
        good.to_uppercase(),
        format!("{good} "),
        format!(" {good}"),
        format!("{good} stage=ready"),
        good.replace("v1", "v2"),
        good.replace("stage=ready", "stage=attached"),
        good.replace("stage=ready", "stage=attached node=a host=b mode=rwo since=1"),
        good.replace("cluster=lab", "cluster="),
        good.replace("vol=pvc", "vol=raid"),
    ] {
        assert_eq!(OwnerTag::parse(&bad), None, "{bad:?}");
    }
}

#[test]
fn ownership_needs_slot_cluster_and_volume() {
    let volume: VolumeId = ID.parse().unwrap();
    let ours: ClusterId = "lab".parse().unwrap();
    let comment = tag(Stage::Ready).to_string();
    assert!(matches!(judge(ID, &comment, &volume, &ours), Ownership::Ours(_)));
    for (slot, comment, want) in [
        ("raid10", comment.clone(), "slot"),
        (ID, String::new(), "no owner tag"),
        (ID, "backup of alice".into(), "not an owner tag"),
        (ID, comment.replace("lab", "prod"), "cluster"),
        (ID, comment.replace("pvc-3", "pvc-4"), "owner tag is that of"),
    ] {
        match judge(slot, &comment, &volume, &ours) {
            Ownership::Foreign(why) => assert!(why.contains(want), "{why}"),
            Ownership::Ours(_) => panic!("{comment:?} taken for ours"),
        }
    }
}

proptest! {
    #[test]
    fn every_tag_is_short_and_round_trips(
        cluster in "[A-Za-z0-9._-]{1,36}",
        node in "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
        since in 0u64..100_000_000_000,
        shared: bool,
        target in proptest::option::of("[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"),
        with_class: bool,
        made: bool,
        bare: bool,
    ) {
        let key = |name: &str| NodeKey::of(&name.parse().unwrap());
        let sharing = if shared { Sharing::Shared } else { Sharing::Exclusive };
        let one = Attachment::new(key(&node), HostNqn::random(), sharing, since);
        let t = OwnerTag {
            cluster: cluster.parse().unwrap(),
            volume: VolumeId::from_request_name(&node),
            class: with_class.then(|| ClassHash::of([("a", "b")].into_iter())),
            notes: Notes { made: made.then_some(7), bare, growing: bare },
            stage: Stage::Attached(match target {
                Some(target) if shared => one.joined_by(key(&target), 3600, since),
                _ => one,
            }),
        };
        let text = t.to_string();
        prop_assert!(text.len() <= MAX_LEN, "{} bytes", text.len());
        // Only the stamp may be left out, where it does not fit.
        let read = OwnerTag::parse(&text).unwrap();
        prop_assert!(read.notes.made == t.notes.made || text.len() > 240);
        prop_assert_eq!(OwnerTag { notes: t.notes, ..read.clone() }, t.clone());
        prop_assert_eq!(Notes { made: None, ..read.notes }, Notes { made: None, ..t.notes });
    }

    #[test]
    fn reading_never_panics_and_never_loses_anything(text in "(rds-csi v1 )?[ -~]{0,80}") {
        if let Some(t) = OwnerTag::parse(&text) {
            prop_assert_eq!(t.to_string(), text);
        }
    }
}
