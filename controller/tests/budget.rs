//! How many commands a CSI call sends to the appliance, which takes one at a time. A command is
//! one request that reaches it: one HTTP request, or one line of the console.
//!
//! The appliance of these tests shows each change in its answer or the next look. A slow one
//! is looked at again every 200 ms until it does; those looks are the appliance's time and
//! are not counted here, nor are retries after an answer was lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::*;
use rds_csi_proto::csi::*;
use serde_json::Value;

fn id(n: u32) -> String {
    format!("pvc-00000000-0000-4000-8000-{n:012x}")
}

/// What was asked for since it was made, to the request.
struct Meter<'a> {
    lab: &'a Lab,
    call: &'static str,
    before: Value,
}

impl<'a> Meter<'a> {
    fn start(lab: &'a Lab, call: &'static str) -> Self {
        Self { lab, call, before: lab.ctl(&["stats"]) }
    }

    /// Not more than promised, and not less either: then the promise is to be mended.
    #[track_caller]
    fn reads(self, budget: u64) {
        let after = self.lab.ctl(&["stats"]);
        let total = |stats: &Value| stats["total"].as_u64().unwrap();
        let sent = total(&after) - total(&self.before);
        println!("{VIA:?} {}: {sent} of {budget} commands", self.call);
        assert_eq!(sent, budget, "{}: before {}, after {after}", self.call, self.before);
    }
}

async fn expand(lab: &Lab, volume: &str, required_bytes: i64) {
    let request = ControllerExpandVolumeRequest {
        volume_id: volume.into(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        ..Default::default()
    };
    lab.volumes().controller_expand_volume(request).await.unwrap();
}

async fn list(lab: &Lab) -> usize {
    let request = ListVolumesRequest { max_entries: 1000, starting_token: String::new() };
    lab.volumes().list_volumes(request).await.unwrap().into_inner().entries.len()
}

#[tokio::test]
async fn each_call_keeps_to_its_number_of_commands() {
    let lab = Lab::start_with(PROMPT, |_| {}).await;
    // The first call ever also asks for the version, twice; the first creation, and one every
    // five minutes, what kind of pool it goes to.
    assert_eq!(list(&lab).await, 0);
    let meter = Meter::start(&lab, "create, pool not known");
    lab.create(&id(2)).await.unwrap();
    meter.reads(4);
    lab.delete(&id(2)).await.unwrap();
    let (volume, node) = (id(1), "node-1");
    // Both when there is something to do and when it has been done.
    for (create, budget) in [("create", CREATE), ("create again", 2)] {
        let meter = Meter::start(&lab, create);
        lab.create(&volume).await.unwrap();
        meter.reads(budget);
    }
    let meter = Meter::start(&lab, "publish");
    lab.publish(&volume, node).await.unwrap();
    meter.reads(PUBLISH);
    let meter = Meter::start(&lab, "publish again");
    lab.publish(&volume, node).await.unwrap();
    meter.reads(1);
    let meter = Meter::start(&lab, "expand, attached");
    expand(&lab, &volume, 128 * MIB).await;
    meter.reads(4);
    let meter = Meter::start(&lab, "expand again");
    expand(&lab, &volume, 128 * MIB).await;
    meter.reads(1);
    let meter = Meter::start(&lab, "get");
    let request = ControllerGetVolumeRequest { volume_id: volume.clone() };
    lab.volumes().controller_get_volume(request).await.unwrap();
    meter.reads(2);
    let meter = Meter::start(&lab, "unpublish");
    lab.unpublish(&volume, node).await.unwrap();
    meter.reads(3);
    let meter = Meter::start(&lab, "unpublish again");
    lab.unpublish(&volume, node).await.unwrap();
    meter.reads(1);
    // Open to any host: closed in a change of its own, before anything else.
    let open = serde_json::json!({".id": volume, "nvme-tcp-server-allow-host-name": ""});
    assert_eq!(lab.rest("POST", "/rest/disk/set", open).await.0, 200);
    let meter = Meter::start(&lab, "publish what was open");
    lab.publish(&volume, node).await.unwrap();
    meter.reads(PUBLISH + 1);
    lab.unpublish(&volume, node).await.unwrap();
    let meter = Meter::start(&lab, "expand, detached");
    expand(&lab, &volume, 256 * MIB).await;
    meter.reads(2);
    let meter = Meter::start(&lab, "capacity");
    lab.volumes().get_capacity(GetCapacityRequest::default()).await.unwrap();
    meter.reads(1);
    let meter = Meter::start(&lab, "delete");
    lab.delete(&volume).await.unwrap();
    meter.reads(DELETE);
    let meter = Meter::start(&lab, "delete again");
    lab.delete(&volume).await.unwrap();
    meter.reads(2);
}

/// However many volumes there are: a call about one of them, or about all.
#[tokio::test]
async fn the_number_of_volumes_does_not_matter() {
    let lab = Lab::start_with(PROMPT, |_| {}).await;
    list(&lab).await;
    lab.create(&id(1)).await.unwrap();
    lab.delete(&id(1)).await.unwrap();
    for (count, name, all) in
        [("10", "00000000-0000-4000-8000-10000000000{n}", 10), ("990", "{uuid}", 1000)]
    {
        let slot = format!("--slot=pvc-{name}");
        let path = format!("--file-path={DIRECTORY}/pvc-{name}.img");
        let comment = format!("--comment=rds-csi v1 cluster=lab vol=pvc-{name} stage=ready");
        lab.ctl(&["seed", count, &slot, &path, &comment]);
        let meter = Meter::start(&lab, "list");
        assert_eq!(list(&lab).await, all);
        meter.reads(1);
        let meter = Meter::start(&lab, "create among many");
        lab.create(&id(1)).await.unwrap();
        meter.reads(CREATE);
        let meter = Meter::start(&lab, "delete among many");
        lab.delete(&id(1)).await.unwrap();
        meter.reads(DELETE);
    }
}
